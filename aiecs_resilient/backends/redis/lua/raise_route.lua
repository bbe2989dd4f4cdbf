-- Bring copies of the routing up to an epoch, never down. KEYS: the copies. ARGV: epoch, leader. Answers how many it raised.

local raised = 0
for _, key in ipairs(KEYS) do
  local held = redis.call('GET', key)
  if not held or tonumber(string.match(held, '^%d+')) < tonumber(ARGV[1]) then
    redis.call('SET', key, ARGV[1] .. ' ' .. ARGV[2])
    raised = raised + 1
  end
end
return raised
