-- Checkpoints, pending writes and prunes: _engine.py's _checkpoint, _writes, _prune.

F.need_thread()

function F.save_newer(place, m, body)
  local held = F.load_place(place)
  if not held or F.later(m.stamp, m.op, held.stamp, held.op) then
    F.save_place(place, held, m.stamp, m.op, m.occurred_at, body)
  end
end

MERGE[KIND.checkpoint] = function(m, e)
  if m.stamp > row.thread_dead then
    F.save_newer(F.checkpoint_place(e.a, e.b), m, e.body)
  end
end

MERGE[KIND.writes] = function(m, e)
  local pruned = F.load_place(F.checkpoint_place(e.a, e.b))
  if pruned and not pruned.live and pruned.stamp > m.stamp then
    return
  end
  if m.stamp > row.thread_dead then
    F.save_newer(F.writes_place(e.a, e.b, e.c), m, e.body)
  end
end

MERGE[KIND.prune] = function(m, e)
  for _, id in ipairs(F.unframe(e.body)) do
    F.save_newer(F.checkpoint_place(e.a, id), m, nil)
    F.drop_writes(e.a, id, m.stamp)
  end
end

DECIDE[KIND.writes] = F.yes

DECIDE[KIND.checkpoint] = function(m, _, dead_thread)
  if not m.expected then
    return TRUE, m.effect
  end
  local held = F.load_place(F.checkpoint_place(m.effect.a, m.effect.b))
  local dead = dead_thread > 0 and dead_thread or row.thread_dead
  return TRUE, m.effect, F.version_conflict(m, held and held.live and held.stamp > dead and held.stamp or 0)
end

DECIDE[KIND.prune] = function(m, _, dead_thread)
  local ids = dead_thread > 0 and {} or F.checkpoint_ids(m.effect.a, m.effect.body)
  return cmsgpack.pack(#ids), #ids > 0 and F.copy(m.effect, m.effect.a, F.frame(ids)) or nil
end
