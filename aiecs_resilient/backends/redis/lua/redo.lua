-- One operation under two stamps: _engine.py's _redo, _withdraw and _withdraw_value.

F.need_session()
F.need_thread()

-- Put the row that this operation made below every other stamp, so that its winner finds the place free.
function F.withdraw_value(op, kind, e)
  if kind == KIND.checkpoint then
    F.move_place(F.checkpoint_place(e.a, e.b), op, 0)
  elseif kind == KIND.writes then
    F.move_place(F.writes_place(e.a, e.b, e.c), op, 0)
  end
end

function F.set_by(value, op)
  local _, size, at = struct.unpack('>dH', value)
  return string.sub(value, at, at + size - 1) == op
end

function F.withdraw_update(session, op, e)
  local parts = F.unframe(e.body)
  F.add(session, 's:requests', -tonumber(parts[1]))
  F.add(session, 's:time', -tonumber(parts[2]))
  F.add(session, 's:errors', -tonumber(parts[3]))
  for name, value in pairs(session.v) do
    if value and string.sub(name, 1, 2) == 'f:' and F.set_by(value, op) then
      F.set(session, name, false)
    end
  end
end

-- The best that is still known of who touched it last.
function F.last_stamp(session, with_create)
  local last = with_create and F.num(F.get(session, 's:created')) or 0
  for name, value in pairs(session.v) do
    if value and (name == 's:ended' or string.sub(name, 1, 2) == 'f:') then
      last = math.max(last, (struct.unpack('>d', value)))
    end
  end
  return last
end

-- Take back what a record did here, as far as its winner will not overwrite it anyway.
function F.withdraw(op, known)
  local e = known.effect
  if not e or not e.has then
    return
  end
  if known.kind == KIND.prune then
    for _, id in ipairs(F.unframe(e.body)) do
      F.move_place(F.checkpoint_place(e.a, id), op, 0)
    end
  end
  if known.kind > KIND.ending then
    return
  end
  local session = F.load_session(known.kind == KIND.create and op or e.a)
  if not session then
    return
  end
  F.fetch_all(session)
  if known.kind == KIND.update then
    F.withdraw_update(session, op, e)
  elseif F.get(session, 's:ended') and F.set_by(F.get(session, 's:ended'), op) then
    F.set(session, 's:ended', false)
  end
  if F.num(F.get(session, 's:touched')) == known.stamp then
    F.set(session, 's:touched', F.int(F.last_stamp(session, known.kind ~= KIND.create)))
  end
  F.save_session(session)
end

-- Both stores accepted it and the other one's version counts: withdraw what ours did, then do theirs, under their stamp.
-- The two may differ in more than the stamp: an increment may have counted in another incarnation, or not at all.
function F.redo(known, winner)
  local op, e = winner.op, winner.effect
  row.clock = math.max(row.clock, winner.stamp)
  winner.place = known.place
  if not REFERS[known.kind] then
    F.withdraw(op, known)
    known.effect = e
    if e.has then
      MERGE[known.kind](winner, e)
    end
    return
  end
  if not e.has then
    e = F.effect_of(op, known)
  end
  if e and e.has then
    F.withdraw_value(op, known.kind, e)
    MERGE[known.kind](winner, e)
    known.effect, known.place = e, winner.place  -- it may have come without its effect at first
  end
end
