-- The next names of several buckets. KEYS: names of each. ARGV: how many of each, where a name ends ('(' and text), then
-- where to begin in each ('[' or '(' and text). Answers one list per bucket.

local answer = {}
for i, key in ipairs(KEYS) do
  answer[i] = redis.call('ZRANGEBYLEX', key, ARGV[i + 2], ARGV[2], 'LIMIT', 0, ARGV[1])
end
return answer
