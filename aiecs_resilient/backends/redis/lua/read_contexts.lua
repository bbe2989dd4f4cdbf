-- The newest ARGV[1] versions of a context. KEYS: key, contexts, versions. Answers clock, expiry, then stamp and row of each.

local row = redis.call('HMGET', KEYS[1], 'clock', 'se')
local found = redis.call('ZREVRANGE', KEYS[2], 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
local answer = { row[1], row[2] }
for i = 1, #found, 2 do
  answer[#answer + 1] = found[i + 1]
  answer[#answer + 1] = redis.call('HGET', KEYS[3], found[i])
end
return answer
