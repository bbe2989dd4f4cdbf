-- Deletes, and what has expired: everything of a scope up to a stamp is void, also what arrives later (_engine.py's _bury).

F.need_session()
F.need_messages()
F.need_contexts()
F.need_thread()

function F.bury_session(upto)
  row.session_dead = math.max(row.session_dead, upto)
  if row.session_expires <= upto then
    row.session_expires = 0
  end
  F.drop_sessions(upto)
  F.drop_messages(upto)
  F.drop_contexts(upto)
  F.choose_current()
end

function F.bury_thread(upto)
  row.thread_dead = math.max(row.thread_dead, upto)
  if row.thread_expires <= upto then
    row.thread_expires = 0
  end
  F.drop_thread(upto)
end

function F.bury(dead_session, dead_thread)
  if dead_session > 0 then
    F.bury_session(dead_session)
  end
  if dead_thread > 0 then
    F.bury_thread(dead_thread)
  end
end

MERGE[KIND.delete] = function(m, e)
  if e.a ~= 'thread' then
    F.bury_session(m.stamp)
  end
  if e.a ~= 'session' then
    F.bury_thread(m.stamp)
  end
end

DECIDE[KIND.delete] = function(m, dead_session, dead_thread)
  local scope, before = m.effect.a, tonumber(m.effect.body)
  local dead = scope == 'session' and dead_session > 0 or scope == 'thread' and dead_thread > 0
  if before > 0 and row.clock >= before and not dead then
    return FALSE  -- it came alive since clean-up looked
  end
  local held = scope ~= 'thread' and row.class ~= '' or scope ~= 'session' and row.thread ~= ''
  if dead or held then
    return TRUE, F.copy(m.effect, scope, '')
  end
  return FALSE
end
