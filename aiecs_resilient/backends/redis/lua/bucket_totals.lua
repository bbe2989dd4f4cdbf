-- Totals of several buckets. KEYS: totals and due of each. ARGV: now ('' for the server's clock). Sessions that have expired
-- but were not removed yet do not count. Answers sessions, active, messages, checkpoints.

local now, sums = F.clock_us(ARGV[1]), { 0, 0, 0, 0 }
for i = 1, #KEYS, 2 do
  local held = redis.call('HMGET', KEYS[i], 'sessions', 'active', 'messages', 'checkpoints')
  for n = 1, 4 do
    sums[n] = sums[n] + F.num(held[n])
  end
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[i + 1], '-inf', F.int(now))) do
    local class = string.sub(member, 1, 1)
    if class == 'a' or class == 'e' then
      sums[1] = sums[1] - 1
    end
    if class == 'a' then
      sums[2] = sums[2] - 1
    end
  end
end
return sums
