-- Versions of a task context: _engine.py's _context.

F.need_contexts()

local KEEP = tonumber(ARGV[5])  -- versions that are kept

MERGE[KIND.context] = function(m, e)
  if m.stamp > row.session_dead then
    F.save_context(m.op, m.stamp, m.occurred_at, e.body, KEEP)
  end
end

DECIDE[KIND.context] = function(m, dead_session)
  local wrong = m.expected and F.version_conflict(m, dead_session > 0 and 0 or F.newest_context())
  return TRUE, m.effect, wrong
end
