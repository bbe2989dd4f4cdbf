-- Merging one effect, in whatever order effects arrive: _engine.py's _MERGE, _bury and _redo, line for line.

local KEEP = tonumber(ARGV[5]) or 0  -- versions of a context that are kept

local MERGE = {}

local function bury_session(upto)
  row.session_dead = math.max(row.session_dead, upto)
  drop_sessions(upto)
  drop_messages(upto)
  drop_contexts(upto)
  choose_current()
end

local function bury_thread(upto)
  row.thread_dead = math.max(row.thread_dead, upto)
  drop_thread(upto)
end

local function bury_dead(e)
  if e.dead_session > 0 then
    bury_session(e.dead_session)
  end
  if e.dead_thread > 0 then
    bury_thread(e.dead_thread)
  end
end

MERGE[KIND.create] = function(m, e)
  if m.stamp <= row.session_dead then
    return
  end
  local session = load_session(m.op) or new_session(m.op)
  set(session, 's:created', int(m.stamp))
  set(session, 's:body', e.body)
  set(session, 's:at', int(m.occurred_at))
  touch(session, m)
  if session.here then  -- it stood under another stamp: others may count now
    save_session(session)
    choose_current()
    return
  end
  if row.current ~= '' then
    local created = num(get(load_session(row.current), 's:created'))
    if not later(m.stamp, m.op, created, row.current) then
      save_session(session)
      return
    end
  end
  become_current(session)
end

-- The incarnation that accepted it; a shell if its create has not arrived yet. nil if all that is void.
local function incarnation(m, e)
  if m.stamp <= row.session_dead then
    return nil
  end
  return load_session(e.a) or new_session(e.a)
end

MERGE[KIND.update] = function(m, e)
  local session = incarnation(m, e)
  if not session then
    return
  end
  local parts, names = unframe(e.body), { 's:requests', 's:time', 's:errors', 's:touched' }
  for i = 4, #parts, 2 do
    names[#names + 1] = 'f:' .. parts[i]
  end
  fetch(session, names)
  add(session, 's:requests', tonumber(parts[1]))
  add(session, 's:time', tonumber(parts[2]))
  add(session, 's:errors', tonumber(parts[3]))
  for i = 4, #parts, 2 do
    local held, newer = get(session, 'f:' .. parts[i]), true
    if held then
      local stamp, size, at = struct.unpack('>dH', held)
      newer = later(m.stamp, m.op, stamp, string.sub(held, at, at + size - 1))
    end
    if newer then
      set(session, 'f:' .. parts[i], struct.pack('>dH', m.stamp, #m.op) .. m.op .. parts[i + 1])
    end
  end
  touch(session, m)
  save_session(session)
end

MERGE[KIND.ending] = function(m, e)
  local session = incarnation(m, e)
  if not session then
    return
  end
  local held, newer = get(session, 's:ended'), true
  if held then
    local stamp, size, at = struct.unpack('>dH', held)
    newer = later(m.stamp, m.op, stamp, string.sub(held, at, at + size - 1))
  end
  if newer then
    set(session, 's:ended', struct.pack('>dH', m.stamp, #m.op) .. m.op .. e.body)
  end
  touch(session, m)
  save_session(session)
end

MERGE[KIND.message] = function(m, e)
  if m.stamp > row.session_dead then
    save_message(m.op, m.place, m.stamp, m.occurred_at, e.body)
    m.place = m.stamp
  end
end

MERGE[KIND.context] = function(m, e)
  if m.stamp > row.session_dead then
    save_context(m.op, m.stamp, m.occurred_at, e.body, KEEP)
  end
end

local function save_newer(place, m, body)
  local held = load_place(place)
  if not held or later(m.stamp, m.op, held.stamp, held.op) then
    save_place(place, held, m.stamp, m.op, m.occurred_at, body)
  end
end

MERGE[KIND.checkpoint] = function(m, e)
  if m.stamp > row.thread_dead then
    save_newer(checkpoint_place(e.a, e.b), m, e.body)
  end
end

MERGE[KIND.writes] = function(m, e)
  local pruned = load_place(checkpoint_place(e.a, e.b))
  if pruned and not pruned.live and pruned.stamp > m.stamp then
    return
  end
  if m.stamp > row.thread_dead then
    save_newer(writes_place(e.a, e.b, e.c), m, e.body)
  end
end

MERGE[KIND.prune] = function(m, e)
  for _, id in ipairs(unframe(e.body)) do
    save_newer(checkpoint_place(e.a, id), m, nil)
    drop_writes(e.a, id, m.stamp)
  end
end

MERGE[KIND.delete] = function(m, e)
  if e.a ~= 'thread' then
    bury_session(m.stamp)
  end
  if e.a ~= 'session' then
    bury_thread(m.stamp)
  end
end

local function renew_expiry(m)
  if m.kind == KIND.checkpoint or m.kind == KIND.writes or m.kind == KIND.prune then
    row.thread_expires = math.max(row.thread_expires, m.expires_at)
  elseif m.kind ~= KIND.delete then
    row.session_expires = math.max(row.session_expires, m.expires_at)
  end
end

-- ---------------------------------------------------------------- one operation, two stamps

-- Put the row that this operation made below every other stamp, so that its winner finds the place free.
local function withdraw_value(op, kind, e)
  if kind == KIND.checkpoint then
    move_place(checkpoint_place(e.a, e.b), op, 0)
  elseif kind == KIND.writes then
    move_place(writes_place(e.a, e.b, e.c), op, 0)
  end
end

local function set_by(value, op)
  local _, size, at = struct.unpack('>dH', value)
  return string.sub(value, at, at + size - 1) == op
end

local function withdraw_update(session, op, e)
  local parts = unframe(e.body)
  add(session, 's:requests', -tonumber(parts[1]))
  add(session, 's:time', -tonumber(parts[2]))
  add(session, 's:errors', -tonumber(parts[3]))
  for name, value in pairs(session.v) do
    if value and string.sub(name, 1, 2) == 'f:' and set_by(value, op) then
      set(session, name, false)
    end
  end
end

-- The best that is still known of who touched it last.
local function last_stamp(session, with_create)
  local last = with_create and num(get(session, 's:created')) or 0
  for name, value in pairs(session.v) do
    if value and (name == 's:ended' or string.sub(name, 1, 2) == 'f:') then
      last = math.max(last, (struct.unpack('>d', value)))
    end
  end
  return last
end

-- Take back what a record did here, as far as its winner will not overwrite it anyway.
local function withdraw(op, known)
  local e = known.effect
  if not e or not e.has then
    return
  end
  if known.kind == KIND.prune then
    for _, id in ipairs(unframe(e.body)) do
      move_place(checkpoint_place(e.a, id), op, 0)
    end
  end
  if known.kind > KIND.ending then
    return
  end
  local session = load_session(known.kind == KIND.create and op or e.a)
  if not session then
    return
  end
  fetch_all(session)
  if known.kind == KIND.update then
    withdraw_update(session, op, e)
  elseif get(session, 's:ended') and set_by(get(session, 's:ended'), op) then
    set(session, 's:ended', false)
  end
  if num(get(session, 's:touched')) == known.stamp then
    set(session, 's:touched', int(last_stamp(session, known.kind ~= KIND.create)))
  end
  save_session(session)
end

-- Both stores accepted it and the other one's version counts: withdraw what ours did, then do theirs, under their stamp.
-- The two may differ in more than the stamp: an increment may have counted in another incarnation, or not at all.
local function redo(known, winner)
  local op, e = winner.op, winner.effect
  row.clock = math.max(row.clock, winner.stamp)
  winner.place = known.place
  if not REFERS[known.kind] then
    withdraw(op, known)
    known.effect = e
    if e.has then
      MERGE[known.kind](winner, e)
    end
    return
  end
  if not e.has then
    e = effect_of(op, known)
  end
  if e and e.has then
    withdraw_value(op, known.kind, e)
    MERGE[known.kind](winner, e)
    known.effect, known.place = e, winner.place  -- it may have come without its effect at first
  end
end
