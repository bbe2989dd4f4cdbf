"""The few shapes that the picture is made of, as text. Colours are classes; the page's style sheet has them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]


class Svg:
    """Shapes in the order in which they are drawn."""

    def __init__(self, width: float, height: float, *, label: str) -> None:
        self._open = (
            f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}" '
            'xmlns="http://www.w3.org/2000/svg">'
        )
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, style: str, *, tip: str = "", radius: float = 0
    ) -> None:
        """``tip`` is shown under the pointer."""
        rounded = f' rx="{radius:g}"' if radius else ""
        shape = f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{max(0.0, height):.1f}"{rounded}'
        self._parts.append(f"{shape}><title>{escape(tip)}</title></rect>" if tip else f"{shape}/>")

    def line(self, start: Point, end: Point, style: str) -> None:
        self._parts.append(
            f'<line class="{style}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'
        )

    def path(self, points: Sequence[Point], style: str, *, closed: bool = False) -> None:
        """Straight lines from point to point."""
        if points:
            places = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
            self._parts.append(f'<path class="{style}" d="M{places}{"Z" if closed else ""}"/>')

    def circle(self, centre: Point, radius: float, style: str, *, tip: str = "") -> None:
        shape = f'<circle class="{style}" cx="{centre[0]:.1f}" cy="{centre[1]:.1f}" r="{radius:g}"'
        self._parts.append(f"{shape}><title>{escape(tip)}</title></circle>" if tip else f"{shape}/>")

    def text(self, x: float, y: float, text: str, style: str) -> None:
        self._parts.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def __str__(self) -> str:
        return "\n".join((self._open, *self._parts, "</svg>"))
