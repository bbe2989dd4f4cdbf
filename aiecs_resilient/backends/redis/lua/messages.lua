-- Messages: a zset by stamp, whose members are ordered(op_id), occurred_at and body.

-- The member of a message, if it still stands at this stamp, and its body.
function F.find_message(op, place)
  if place == 0 then
    return nil
  end
  local head = F.ordered(op)
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', K.messages, F.int(place), F.int(place))) do
    if string.sub(member, 1, #head) == head then
      return member, string.sub(member, #head + 9)
    end
  end
end

function F.save_message(op, place, stamp, occurred_at, body)
  local held = F.find_message(op, place)
  if held then
    redis.call('ZREM', K.messages, held)
    row.messages = row.messages - 1
  end
  redis.call('ZADD', K.messages, F.int(stamp), F.ordered(op) .. struct.pack('>d', occurred_at) .. body)
  row.messages = row.messages + 1
end

function F.drop_messages(upto)
  if row.newest <= upto then  -- all of them: freed in the background, however many they are
    row.messages = row.messages - redis.call('ZCARD', K.messages)
    redis.call('UNLINK', K.messages)
  else
    row.messages = row.messages - redis.call('ZREMRANGEBYSCORE', K.messages, '-inf', F.int(upto))
  end
end
