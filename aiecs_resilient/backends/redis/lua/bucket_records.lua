-- The next entries, by (stamp, member), of several buckets' indexes of records. KEYS: the index of each. ARGV: how many of
-- each, the highest stamp, then for each the stamp and the member after which to begin ('' to begin at the stamp).
-- Answers one list of member, stamp, member, stamp ... per bucket.

local WANTED, answer = tonumber(ARGV[1]), {}
for i, key in ipairs(KEYS) do
  local stamp, after = ARGV[2 * i + 1], ARGV[2 * i + 2]
  local list, from = {}, 0
  repeat
    local page = redis.call('ZRANGEBYSCORE', key, stamp, ARGV[2], 'WITHSCORES', 'LIMIT', from, WANTED)
    for n = 1, #page, 2 do
      local passed = after ~= '' and tonumber(page[n + 1]) == tonumber(stamp) and not F.bytes_after(page[n], after)
      if not passed and #list < 2 * WANTED then
        list[#list + 1] = page[n]
        list[#list + 1] = page[n + 1]
      end
    end
    from = from + WANTED
  until #list >= 2 * WANTED or #page < 2 * WANTED
  answer[i] = list
end
return answer
