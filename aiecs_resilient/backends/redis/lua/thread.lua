-- Checkpoints and pending writes.
-- A place is c + ns + id, or w + ns + id + task. Its entry in the order has the stamp before the last part, in 16
-- digits, so that the entries of one namespace, or of one checkpoint's writes, lie side by side and sorted.

function F.checkpoint_place(ns, id)
  return { head = 'c' .. F.ordered(ns), last = id, plain = ns == '' }
end

function F.writes_place(ns, id, task)
  return { head = 'w' .. F.ordered(ns) .. F.ordered(id), last = task, plain = false }
end

function F.digits(stamp)
  return string.format('%016.0f', stamp)
end

function F.entry(place, stamp, op)
  return place.head .. F.digits(stamp) .. F.ordered(op) .. place.last
end

function F.unpack_head(raw)
  local live, stamp, occurred_at, at = struct.unpack('>Bdd', raw)
  return { live = live == 1, stamp = stamp, occurred_at = occurred_at, op = string.sub(raw, at) }
end

function F.load_place(place)
  local raw = redis.call('HGET', K.heads, place.head .. place.last)
  return raw and F.unpack_head(raw) or nil
end

function F.unlist(place, held)
  if held and held.live then
    redis.call('ZREM', K.order, F.entry(place, held.stamp, held.op))
    row.count = row.count - F.one(place.plain)
  end
end

-- `body` nil: a tombstone. `held`: what stood there, as load_place() said.
function F.save_place(place, held, stamp, op, occurred_at, body)
  local name = place.head .. place.last
  F.unlist(place, held)
  redis.call('HSET', K.heads, name, struct.pack('>Bdd', F.one(body), stamp, occurred_at) .. op)
  if body then
    redis.call('HSET', K.values, name, body)
    redis.call('ZADD', K.order, '0', F.entry(place, stamp, op))
    row.count = row.count + F.one(place.plain)
  else
    redis.call('HDEL', K.values, name)
  end
  row.thread_changed = true
end

function F.drop_place(place, held)
  F.unlist(place, held)
  redis.call('HDEL', K.heads, place.head .. place.last)
  redis.call('HDEL', K.values, place.head .. place.last)
  row.thread_changed = true
end

-- Give the row of `op` another stamp, if it still is that operation's.
function F.move_place(place, op, stamp)
  local held = F.load_place(place)
  if held and held.op == op then
    F.unlist(place, held)
    redis.call('HSET', K.heads, place.head .. place.last,
      struct.pack('>Bdd', F.one(held.live), stamp, held.occurred_at) .. op)
    if held.live then
      redis.call('ZADD', K.order, '0', F.entry(place, stamp, op))
      row.count = row.count + F.one(place.plain)
    end
  end
end

-- Ids of live checkpoints, newest first, without the first `keep`.
function F.checkpoint_ids(ns, keep)
  local head, ids = 'c' .. F.ordered(ns), {}
  local found = redis.call('ZREVRANGEBYLEX', K.order, '(' .. head .. ':', '[' .. head, 'LIMIT', keep, -1)
  for i, member in ipairs(found) do
    local _, at = F.unordered(member, #head + 17)
    ids[i] = string.sub(member, at)
  end
  return ids
end

function F.drop_writes(ns, id, upto)
  local head = 'w' .. F.ordered(ns) .. F.ordered(id)
  local found = redis.call('ZRANGEBYLEX', K.order, '[' .. head, '(' .. head .. F.digits(upto + 1))
  for _, member in ipairs(found) do
    local _, at = F.unordered(member, #head + 17)
    local place = { head = head, last = string.sub(member, at), plain = false }
    F.drop_place(place, F.load_place(place))
  end
end

-- The place that a field of the heads names.
function F.parse_place(name)
  local ns, at = F.unordered(name, 2)
  if string.sub(name, 1, 1) == 'w' then
    local _, last = F.unordered(name, at)
    return { head = string.sub(name, 1, last - 1), last = string.sub(name, last), plain = false }
  end
  return { head = string.sub(name, 1, at - 1), last = string.sub(name, at), plain = ns == '' }
end

function F.drop_thread(upto)
  if row.newest <= upto then
    redis.call('UNLINK', K.heads, K.values, K.order)
    row.count, row.thread_changed = 0, true
    return
  end
  local all = redis.call('HGETALL', K.heads)
  for i = 1, #all, 2 do
    local held = F.unpack_head(all[i + 1])
    if held.stamp <= upto then
      F.drop_place(F.parse_place(all[i]), held)
    end
  end
end
