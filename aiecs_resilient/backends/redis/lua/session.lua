-- The incarnations of a session. The current one's fields stand in the hash of the id itself, so that reading a
-- session is one HGETALL; all others are kept framed, one field each. Names: s:created, s:body, s:at (when created),
-- s:requests, s:time, s:errors, s:touched (stamp), s:seen (when touched), s:ended, f:<name of a field>.

function F.unpack_session(raw)
  local parts, v = F.unframe(raw), {}
  for i = 1, #parts, 2 do
    v[parts[i]] = parts[i + 1]
  end
  return v
end

function F.load_session(inc)
  if inc == row.current and inc ~= '' then
    return { inc = inc, here = true, v = row.known, changed = {} }
  end
  local raw = redis.call('HGET', K.others, inc)
  return raw and { inc = inc, here = false, v = F.unpack_session(raw), changed = {} } or nil
end

function F.new_session(inc)
  return { inc = inc, here = false, v = {}, changed = {} }
end

-- In one command what would else be one command per name.
function F.fetch(session, names)
  if not session.here then
    return
  end
  local missing = {}
  for _, name in ipairs(names) do
    if session.v[name] == nil then
      missing[#missing + 1] = name
    end
  end
  for from = 1, #missing, 1000 do
    local last = math.min(from + 999, #missing)
    local found = redis.call('HMGET', K.key, unpack(missing, from, last))
    for i = from, last do
      session.v[missing[i]] = found[i - from + 1]
    end
  end
end

function F.get(session, name)
  if session.here and session.v[name] == nil then
    session.v[name] = redis.call('HGET', K.key, name)
  end
  return session.v[name] or nil
end

function F.set(session, name, value)
  session.v[name] = value
  session.changed[name] = true
end

function F.add(session, name, by)
  if by ~= 0 then
    F.set(session, name, F.int(F.num(F.get(session, name)) + by))
  end
end

function F.touch(session, m)
  local stamp, seen = F.num(F.get(session, 's:touched')), F.num(F.get(session, 's:seen'))
  if m.stamp > stamp or (m.stamp == stamp and m.occurred_at > seen) then
    F.set(session, 's:touched', F.int(m.stamp))
    F.set(session, 's:seen', F.int(m.occurred_at))
  end
end

-- A field set to false goes away.
function F.save_session(session)
  local list, gone = {}, {}
  for name, value in pairs(session.v) do
    if value and (session.changed[name] or not session.here) then
      list[#list + 1] = name
      list[#list + 1] = value
    elseif not value and session.changed[name] then
      gone[#gone + 1] = name
    end
  end
  if session.here then
    F.call_many('HSET', K.key, list)
    F.call_many('HDEL', K.key, gone)
    row.ended = F.get(session, 's:ended')
  else
    redis.call('HSET', K.others, session.inc, F.frame(list))
  end
  session.changed = {}
end

-- The current incarnation's fields, as { name, value, name, value ... }.
function F.current_fields()
  local all, list = redis.call('HGETALL', K.key), {}
  for i = 1, #all, 2 do
    local kind = string.sub(all[i], 1, 2)
    if kind == 's:' or kind == 'f:' then
      list[#list + 1] = all[i]
      list[#list + 1] = all[i + 1]
    end
  end
  return list
end

function F.fetch_all(session)
  if session.here then
    local list = F.current_fields()
    for i = 1, #list, 2 do
      session.v[list[i]] = list[i + 1]
    end
  end
end

-- Take the current incarnation out of its place: to the others, or away altogether.
function F.leave_current(keep)
  local list, names = F.current_fields(), {}
  for i = 1, #list, 2 do
    names[#names + 1] = list[i]
  end
  if keep then
    redis.call('HSET', K.others, row.current, F.frame(list))
  end
  F.call_many('HDEL', K.key, names)
  row.current, row.known, row.ended = '', {}, false
end

function F.become_current(session)
  if row.current ~= '' then
    F.leave_current(true)
  end
  redis.call('HDEL', K.others, session.inc)
  row.current, row.known, session.here = session.inc, session.v, true
  for name in pairs(session.v) do
    session.changed[name] = true
  end
  F.save_session(session)
end

function F.other_sessions()
  local all, found = redis.call('HGETALL', K.others), {}
  for i = 1, #all, 2 do
    found[#found + 1] = { inc = all[i], here = false, v = F.unpack_session(all[i + 1]), changed = {} }
  end
  return found
end

-- The create with the highest (stamp, op_id) is the session.
function F.choose_current()
  local best, created
  local candidates = F.other_sessions()
  if row.current ~= '' then
    candidates[#candidates + 1] = F.load_session(row.current)
  end
  for _, session in ipairs(candidates) do
    local stamp = F.get(session, 's:created')
    if stamp and tonumber(stamp) > row.session_dead
      and (not best or F.later(tonumber(stamp), session.inc, created, best.inc)) then
      best, created = session, tonumber(stamp)
    end
  end
  if best and best.inc ~= row.current then
    F.become_current(best)
  elseif not best and row.current ~= '' then
    F.leave_current(true)
  end
end

function F.drop_sessions(upto)
  for _, session in ipairs(F.other_sessions()) do
    local created = F.get(session, 's:created')
    if created and tonumber(created) <= upto then
      redis.call('HDEL', K.others, session.inc)
    end
  end
  if row.current ~= '' and F.num(F.get(F.load_session(row.current), 's:created')) <= upto then
    F.leave_current(false)
  end
end
