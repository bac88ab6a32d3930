-- Whether this Redis still holds what it held. A key that is only ever made here says so: where it is
-- missing, everything is.
--
-- KEYS[1]  "generation since": a random name, and since when, in microseconds, buckets are known to
--          have been lost; 0 where none were.
-- ARGV     1 the generation that this gateway knew, or nothing; 2 a new name.
-- Returns  the generation, since when, and the time.

local clock = redis.call('TIME')
local now = string.format('%.0f', clock[1] * 1000000 + clock[2])
local known, fresh = ARGV[1], ARGV[2]
local value = redis.call('GET', KEYS[1])
local name, since
if value then
  name, since = string.match(value, '^(%S+) (%d+)$')
end
if not name then
  name, since = fresh, known == '' and '0' or now
  redis.call('SET', KEYS[1], name .. ' ' .. since)
elseif known ~= '' and known ~= name and since == '0' then
  -- Made by a gateway that had just started, and could not know.
  since = now
  redis.call('SET', KEYS[1], name .. ' ' .. since)
end
return { name, since, now }
