-- Versions of a task context: a zset of op_ids by stamp, and a hash with what they hold.

function F.newest_context()
  return F.num(redis.call('ZREVRANGE', K.contexts, 0, 0, 'WITHSCORES')[2])
end

function F.drop_contexts_listed(ops)
  if #ops > 0 then
    F.call_many('ZREM', K.contexts, ops)
    F.call_many('HDEL', K.versions, ops)
  end
end

function F.save_context(op, stamp, occurred_at, body, keep)
  redis.call('ZADD', K.contexts, F.int(stamp), op)
  redis.call('HSET', K.versions, op, struct.pack('>d', occurred_at) .. body)
  local surplus = redis.call('ZCARD', K.contexts) - keep
  if surplus > 0 then
    F.drop_contexts_listed(redis.call('ZRANGE', K.contexts, 0, surplus - 1))
  end
end

function F.drop_contexts(upto)
  F.drop_contexts_listed(redis.call('ZRANGEBYSCORE', K.contexts, '-inf', F.int(upto)))
end
