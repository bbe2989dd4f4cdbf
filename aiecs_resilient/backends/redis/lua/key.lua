-- One session or thread id: its KEYS, and the row with its clock, tombstones and expiries.
-- KEYS and the first ARGV are the same in every script about one id (see _keys.py).

local K = {
  route = KEYS[1],     -- string "epoch leader": the bucket's copy of the routing
  key = KEYS[2],       -- hash: this row, and the fields of the current incarnation (s:*, f:*)
  others = KEYS[3],    -- hash: incarnation -> its fields, framed, for all but the current one
  records = KEYS[4],   -- hash: op_id -> record
  messages = KEYS[5],  -- zset by stamp: ordered(op_id), occurred_at, body
  contexts = KEYS[6],  -- zset by stamp: op_id
  versions = KEYS[7],  -- hash: op_id -> occurred_at and body of a context
  heads = KEYS[8],     -- hash: place of a checkpoint or of a task's writes -> live, stamp, occurred_at, op_id
  values = KEYS[9],    -- hash: the same place -> body
  order = KEYS[10],    -- zset, all scores 0: live checkpoints and writes in their order
  marks = KEYS[11],    -- bucket, zset by stamp: records that the peer lacks
  log = KEYS[12],      -- bucket, zset by stamp: all records
  idle = KEYS[13],     -- bucket, zset by clock: ids with a session, messages or contexts
  due = KEYS[14],      -- bucket, zset by expiry: class of what expires, then the id
  names = KEYS[15],    -- bucket, zset, all scores 0: s + name of a session, t + name of a thread
  totals = KEYS[16],   -- bucket, hash: sessions, active, messages, checkpoints
}
local ID, NAME = ARGV[1], ARGV[2]  -- the id, and its entry in an index of names

local row

function F.load_row()
  local v = redis.call('HMGET', K.key, 'clock', 'sd', 'td', 'se', 'te', 'cur', 'class', 'thread', 'count',
    's:created', 's:touched', 's:ended')
  row = {
    clock = F.num(v[1]),
    session_dead = F.num(v[2]),
    thread_dead = F.num(v[3]),
    session_expires = F.num(v[4]),
    thread_expires = F.num(v[5]),
    current = v[6] or '',    -- the incarnation that counts
    class = v[7] or '',      -- as indexed: a active, e ended, n no session but messages or contexts
    thread = v[8] or '',     -- as indexed: t if there are live checkpoints or writes
    count = F.num(v[9]),       -- live checkpoints without a namespace
    known = { ['s:created'] = v[10], ['s:touched'] = v[11], ['s:ended'] = v[12] },
    messages = 0,            -- change to the bucket's total
    thread_changed = false,
  }
  row.ended = v[12]
  row.newest = row.clock     -- no row of this id has a higher stamp
  row.saved = {
    clock = row.clock, sd = row.session_dead, td = row.thread_dead, se = row.session_expires,
    te = row.thread_expires, cur = row.current, class = row.class, thread = row.thread, count = row.count,
  }
end

function F.class_now()
  if row.current ~= '' then
    return row.ended and 'e' or 'a'
  end
  return redis.call('EXISTS', K.messages, K.contexts) > 0 and 'n' or ''
end

function F.add_total(name, by)
  if by ~= 0 then
    redis.call('HINCRBY', K.totals, name, F.int(by))
  end
end

function F.one(condition)
  return condition and 1 or 0
end

function F.index_name(tag, before, after)
  if before ~= after then
    redis.call(after and 'ZADD' or 'ZREM', K.names, unpack(after and { '0', tag .. NAME } or { tag .. NAME }))
  end
end

function F.index_due(before, after, expires, expired_before)
  if before ~= '' and (before ~= after or expires ~= expired_before and expires == 0) then
    redis.call('ZREM', K.due, before .. ID)
  end
  if after ~= '' and expires > 0 and (before ~= after or expires ~= expired_before) then
    redis.call('ZADD', K.due, F.int(expires), after .. ID)
  end
end

-- Write the row back and bring the bucket's indexes and counters in line with it: in the same atomic step.
function F.save_row()
  local was, class, thread = row.saved, F.class_now(), row.thread
  if row.thread_changed then
    thread = redis.call('EXISTS', K.order) > 0 and 't' or ''
    row.thread_changed = false
  end
  local before = was.class
  if class ~= before then
    local lived, lives = before == 'a' or before == 'e', class == 'a' or class == 'e'
    F.index_name('s', lived, lives)
    F.add_total('sessions', F.one(lives) - F.one(lived))
    F.add_total('active', F.one(class == 'a') - F.one(before == 'a'))
  end
  F.index_name('t', was.count > 0, row.count > 0)
  F.add_total('checkpoints', row.count - was.count)
  F.add_total('messages', row.messages)
  if class ~= '' then
    if class ~= before or row.clock ~= was.clock then
      redis.call('ZADD', K.idle, F.int(row.clock), ID)
    end
  elseif before ~= '' then
    redis.call('ZREM', K.idle, ID)
  end
  F.index_due(before, class, row.session_expires, was.se)
  F.index_due(was.thread, thread, row.thread_expires, was.te)
  row.class, row.thread, row.messages = class, thread, 0
  local now = {
    clock = row.clock, sd = row.session_dead, td = row.thread_dead, se = row.session_expires,
    te = row.thread_expires, cur = row.current, class = class, thread = thread, count = row.count,
  }
  local changed = {}
  for name, value in pairs(now) do
    if value ~= was[name] then
      changed[#changed + 1] = name
      changed[#changed + 1] = type(value) == 'number' and F.int(value) or value
    end
  end
  if #changed > 0 then
    redis.call('HSET', K.key, unpack(changed))
  end
  row.saved, row.newest = now, row.clock
end
