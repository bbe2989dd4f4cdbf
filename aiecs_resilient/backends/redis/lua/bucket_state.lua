-- Marks and routing of several buckets. KEYS: marks and route of each. Answers the count of marks, the oldest one's stamp,
-- and the lowest and the highest routing ('' for none).

local count, oldest, low, high = 0, 0, nil, nil

local function epoch(route)
  return tonumber(string.match(route, '^%d+') or '0')
end

for i = 1, #KEYS, 2 do
  local size = redis.call('ZCARD', KEYS[i])
  if size > 0 then
    count = count + size
    local first = F.num(redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')[2])
    oldest = oldest == 0 and first or math.min(oldest, first)
  end
  local route = redis.call('GET', KEYS[i + 1]) or ''
  if not low or epoch(route) < epoch(low) then
    low = route
  end
  if not high or epoch(route) > epoch(high) then
    high = route
  end
end
return { count, oldest, low, high }
