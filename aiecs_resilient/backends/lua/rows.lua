-- Rows that carry values: messages, versions of a context, checkpoints and pending writes.

-- ---------------------------------------------------------------- messages

-- The member of a message, if it still stands at this stamp, and its body.
local function find_message(op, place)
  if place == 0 then
    return nil
  end
  local head = ordered(op)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.messages, int(place), int(place))) do
    if string.sub(member, 1, #head) == head then
      return member, string.sub(member, #head + 9)
    end
  end
end

local function save_message(op, place, stamp, occurred_at, body)
  local held = find_message(op, place)
  if held then
    redis.call('ZREM', K.messages, held)
    row.messages = row.messages - 1
  end
  redis.call('ZADD', K.messages, int(stamp), ordered(op) .. struct.pack('>d', occurred_at) .. body)
  row.messages = row.messages + 1
end

local function drop_messages(upto)
  if row.newest <= upto then  -- all of them: freed in the background, however many they are
    row.messages = row.messages - redis.call('ZCARD', K.messages)
    redis.call('UNLINK', K.messages)
  else
    row.messages = row.messages - redis.call('ZREMRANGEBYSCORE', K.messages, '-inf', int(upto))
  end
end

-- ---------------------------------------------------------------- contexts

local function newest_context()
  return num(redis.call('ZREVRANGE', K.contexts, 0, 0, 'WITHSCORES')[2])
end

local function drop_contexts_listed(ops)
  if #ops > 0 then
    call_many('ZREM', K.contexts, ops)
    call_many('HDEL', K.versions, ops)
  end
end

local function save_context(op, stamp, occurred_at, body, keep)
  redis.call('ZADD', K.contexts, int(stamp), op)
  redis.call('HSET', K.versions, op, struct.pack('>d', occurred_at) .. body)
  local surplus = redis.call('ZCARD', K.contexts) - keep
  if surplus > 0 then
    drop_contexts_listed(redis.call('ZRANGE', K.contexts, 0, surplus - 1))
  end
end

local function drop_contexts(upto)
  drop_contexts_listed(redis.call('ZRANGEBYSCORE', K.contexts, '-inf', int(upto)))
end

-- ---------------------------------------------------------------- checkpoints and writes
-- A place is c + ns + id, or w + ns + id + task. Its entry in the order has the stamp before the last part, in 16
-- digits, so that the entries of one namespace, or of one checkpoint's writes, lie side by side and sorted.

local function checkpoint_place(ns, id)
  return { head = 'c' .. ordered(ns), last = id, plain = ns == '' }
end

local function writes_place(ns, id, task)
  return { head = 'w' .. ordered(ns) .. ordered(id), last = task, plain = false }
end

local function digits(stamp)
  return string.format('%016.0f', stamp)
end

local function entry(place, stamp, op)
  return place.head .. digits(stamp) .. ordered(op) .. place.last
end

local function unpack_head(raw)
  local live, stamp, occurred_at, at = struct.unpack('>Bdd', raw)
  return { live = live == 1, stamp = stamp, occurred_at = occurred_at, op = string.sub(raw, at) }
end

local function load_place(place)
  local raw = redis.call('HGET', K.heads, place.head .. place.last)
  return raw and unpack_head(raw) or nil
end

local function unlist(place, held)
  if held and held.live then
    redis.call('ZREM', K.order, entry(place, held.stamp, held.op))
    row.count = row.count - one(place.plain)
  end
end

-- `body` nil: a tombstone. `held`: what stood there, as load_place() said.
local function save_place(place, held, stamp, op, occurred_at, body)
  local name = place.head .. place.last
  unlist(place, held)
  redis.call('HSET', K.heads, name, struct.pack('>Bdd', one(body), stamp, occurred_at) .. op)
  if body then
    redis.call('HSET', K.values, name, body)
    redis.call('ZADD', K.order, '0', entry(place, stamp, op))
    row.count = row.count + one(place.plain)
  else
    redis.call('HDEL', K.values, name)
  end
  row.thread_changed = true
end

local function drop_place(place, held)
  unlist(place, held)
  redis.call('HDEL', K.heads, place.head .. place.last)
  redis.call('HDEL', K.values, place.head .. place.last)
  row.thread_changed = true
end

-- Give the row of `op` another stamp, if it still is that operation's.
local function move_place(place, op, stamp)
  local held = load_place(place)
  if held and held.op == op then
    unlist(place, held)
    redis.call('HSET', K.heads, place.head .. place.last,
      struct.pack('>Bdd', one(held.live), stamp, held.occurred_at) .. op)
    if held.live then
      redis.call('ZADD', K.order, '0', entry(place, stamp, op))
      row.count = row.count + one(place.plain)
    end
  end
end

-- Ids of live checkpoints, newest first, without the first `keep`.
local function checkpoint_ids(ns, keep)
  local head, ids = 'c' .. ordered(ns), {}
  local found = redis.call('ZREVRANGEBYLEX', K.order, '(' .. head .. ':', '[' .. head, 'LIMIT', keep, -1)
  for i, member in ipairs(found) do
    local _, at = unordered(member, #head + 17)
    ids[i] = string.sub(member, at)
  end
  return ids
end

local function drop_writes(ns, id, upto)
  local head = 'w' .. ordered(ns) .. ordered(id)
  local found = redis.call('ZRANGEBYLEX', K.order, '[' .. head, '(' .. head .. digits(upto + 1))
  for _, member in ipairs(found) do
    local _, at = unordered(member, #head + 17)
    local place = { head = head, last = string.sub(member, at), plain = false }
    drop_place(place, load_place(place))
  end
end

-- The place that a field of the heads names.
local function parse_place(name)
  local ns, at = unordered(name, 2)
  if string.sub(name, 1, 1) == 'w' then
    local _, last = unordered(name, at)
    return { head = string.sub(name, 1, last - 1), last = string.sub(name, last), plain = false }
  end
  return { head = string.sub(name, 1, at - 1), last = string.sub(name, at), plain = ns == '' }
end

local function drop_thread(upto)
  if row.newest <= upto then
    redis.call('UNLINK', K.heads, K.values, K.order)
    row.count, row.thread_changed = 0, true
    return
  end
  local all = redis.call('HGETALL', K.heads)
  for i = 1, #all, 2 do
    local held = unpack_head(all[i + 1])
    if held.stamp <= upto then
      drop_place(parse_place(all[i]), held)
    end
  end
end
