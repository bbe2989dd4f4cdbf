-- Compare and set on the master copy of the routing. KEYS: master. ARGV: expected epoch, new epoch, leader. Answers what it is.

local held = redis.call('GET', KEYS[1]) or '0 '
local epoch = tonumber(string.match(held, '^%d+'))
if epoch == tonumber(ARGV[1]) and tonumber(ARGV[2]) > epoch then
  held = ARGV[2] .. ' ' .. ARGV[3]
  redis.call('SET', KEYS[1], held)
end
return held
