-- Merging one effect, in whatever order effects arrive: _engine.py's _MERGE, _bury and _restamp, line for line.

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

local function restamp_session(winner, inc)
  local session = load_session(inc)
  if not session then
    return
  end
  local list = session.here and current_fields() or nil
  if list then
    for i = 1, #list, 2 do
      session.v[list[i]] = list[i + 1]
    end
  end
  for name, value in pairs(session.v) do
    if value and (name == 's:ended' or string.sub(name, 1, 2) == 'f:') then
      local _, size, at = struct.unpack('>dH', value)
      if string.sub(value, at, at + size - 1) == winner.op then
        set(session, name, struct.pack('>d', winner.stamp) .. string.sub(value, 9))
      end
    end
  end
  touch(session, winner)
  save_session(session)
end

-- Move what a record did to the stamp that won. Its effect stays: an increment still counts once.
local function restamp(known, winner)
  local e = winner.effect.has and winner.effect or effect_of(winner.op, known)
  winner.place = known.place
  row.clock = math.max(row.clock, winner.stamp)
  if not e or not e.has then
    return
  end
  if known.kind == KIND.update or known.kind == KIND.ending then
    restamp_session(winner, e.a)
    return
  end
  if known.kind == KIND.checkpoint then
    move_place(checkpoint_place(e.a, e.b), winner.op, 0)
  elseif known.kind == KIND.writes then
    move_place(writes_place(e.a, e.b, e.c), winner.op, 0)
  end
  MERGE[known.kind](winner, e)
  known.place = winner.place
end
