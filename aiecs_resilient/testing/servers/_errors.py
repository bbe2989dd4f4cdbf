"""What can go wrong with a development server; apart from the storage errors, because nothing was stored."""


class ServerError(RuntimeError):
    """A server could not be started, stopped or asked; the message has the cause and the tail of its log."""


class ServerNotInstalledError(ServerError):
    """No binary of that server, neither bundled nor on PATH; the message names the command that installs it."""


INSTALL = 'pip install "aiecs-resilient[servers]"'
