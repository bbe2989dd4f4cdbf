-- Entries of the thread's order that begin with ARGV[1], with their heads and bodies: at most ARGV[2] (-1: all), newest
-- first if ARGV[3] is 1. KEYS: key, heads, values, order. Answers clock, expiry, then head, last part and body of each.

local HEAD, LIMIT = ARGV[1], tonumber(ARGV[2])
local row = redis.call('HMGET', KEYS[1], 'clock', 'te')
local found
if ARGV[3] == '1' then
  found = redis.call('ZREVRANGEBYLEX', KEYS[4], '(' .. HEAD .. ':', '[' .. HEAD, 'LIMIT', 0, LIMIT)
else
  found = redis.call('ZRANGEBYLEX', KEYS[4], '[' .. HEAD, '(' .. HEAD .. ':', 'LIMIT', 0, LIMIT)
end
local answer = { row[1], row[2] }
for _, member in ipairs(found) do
  local _, at = F.unordered(member, #HEAD + 17)
  local last = string.sub(member, at)
  local name = HEAD .. last
  answer[#answer + 1] = redis.call('HGET', KEYS[2], name)
  answer[#answer + 1] = last
  answer[#answer + 1] = redis.call('HGET', KEYS[3], name)
end
return answer
