-- Create, update and end: _engine.py's _create, _update, _end, and what the accepting store decides of them.

F.need_session()

MERGE[KIND.create] = function(m, e)
  if m.stamp <= row.session_dead then
    return
  end
  local session = F.load_session(m.op) or F.new_session(m.op)
  F.set(session, 's:created', F.int(m.stamp))
  F.set(session, 's:body', e.body)
  F.set(session, 's:at', F.int(m.occurred_at))
  F.touch(session, m)
  if session.here then  -- it stood under another stamp: others may count now
    F.save_session(session)
    F.choose_current()
    return
  end
  if row.current ~= '' then
    local created = F.num(F.get(F.load_session(row.current), 's:created'))
    if not F.later(m.stamp, m.op, created, row.current) then
      F.save_session(session)
      return
    end
  end
  F.become_current(session)
end

-- The incarnation that accepted it; a shell if its create has not arrived yet. nil if all that is void.
function F.incarnation(m, e)
  if m.stamp <= row.session_dead then
    return nil
  end
  return F.load_session(e.a) or F.new_session(e.a)
end

MERGE[KIND.update] = function(m, e)
  local session = F.incarnation(m, e)
  if not session then
    return
  end
  local parts, names = F.unframe(e.body), { 's:requests', 's:time', 's:errors', 's:touched' }
  for i = 4, #parts, 2 do
    names[#names + 1] = 'f:' .. parts[i]
  end
  F.fetch(session, names)
  F.add(session, 's:requests', tonumber(parts[1]))
  F.add(session, 's:time', tonumber(parts[2]))
  F.add(session, 's:errors', tonumber(parts[3]))
  for i = 4, #parts, 2 do
    local held, newer = F.get(session, 'f:' .. parts[i]), true
    if held then
      local stamp, size, at = struct.unpack('>dH', held)
      newer = F.later(m.stamp, m.op, stamp, string.sub(held, at, at + size - 1))
    end
    if newer then
      F.set(session, 'f:' .. parts[i], struct.pack('>dH', m.stamp, #m.op) .. m.op .. parts[i + 1])
    end
  end
  F.touch(session, m)
  F.save_session(session)
end

MERGE[KIND.ending] = function(m, e)
  local session = F.incarnation(m, e)
  if not session then
    return
  end
  local held, newer = F.get(session, 's:ended'), true
  if held then
    local stamp, size, at = struct.unpack('>dH', held)
    newer = F.later(m.stamp, m.op, stamp, string.sub(held, at, at + size - 1))
  end
  if newer then
    F.set(session, 's:ended', struct.pack('>dH', m.stamp, #m.op) .. m.op .. e.body)
  end
  F.touch(session, m)
  F.save_session(session)
end

DECIDE[KIND.create] = F.yes

function F.current_session(dead_session)
  return dead_session == 0 and row.current ~= '' and F.load_session(row.current) or nil
end

DECIDE[KIND.update] = function(m, dead_session)
  local session = F.current_session(dead_session)
  local wrong = F.version_conflict(m, session and F.num(F.get(session, 's:touched')) or 0)
  if wrong then
    return nil, nil, wrong
  end
  if not session then
    return FALSE
  end
  if row.ended then
    local parts = F.unframe(m.effect.body)
    for i = 4, #parts, 2 do
      if parts[i] == 'status' then
        return FALSE
      end
    end
  end
  return TRUE, F.copy(m.effect, session.inc, m.effect.body)
end

DECIDE[KIND.ending] = function(m, dead_session)
  local session = F.current_session(dead_session)
  if not session then
    return FALSE
  end
  return TRUE, F.copy(m.effect, session.inc, m.effect.body)
end
