-- One gateway's question about one subject's two buckets. It reads one key alone, so that it runs on a
-- cluster, and only Redis' own clock. Whoever changes what it stores raises `FORMAT` in redis.rs.
--
-- KEYS[1]  a hash: `a` and `b`, what the buckets owe, in units of a token / the window's microseconds;
--          `t`, when that was true, in microseconds; for each gateway that holds tokens, under its
--          name: "held expires sequence idle"; and `w`, of tokens that come back after use, which gateway
--          found none, and until when the others care: "name expires".
-- ARGV     1 gateway, 2 sequence, 3 and 4 limit and window of `a` in tokens and microseconds, 5 and 6
--          those of `b` (a limit of -1: there is none), 7 how many limits a bucket may owe, 8 held,
--          9 given back, 10 needed, 11 ahead, 12 thousandths of a token owed, 13 the length of a lease in
--          microseconds, 14 and 15 what `a` and `b` owe where nothing is known of them, 16 whether `b`
--          must owe that much, 17 how many of those held are not in use.
-- Returns  granted; what `a` and `b` owe; of tokens that come back after use, how many the other gateways hold
--          without using them, whether one of those found none, and how many more are held than there
--          are. Or -1 where a newer question was answered before.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local gateway, sequence = ARGV[1], tonumber(ARGV[2])
local buckets = {
  { limit = tonumber(ARGV[3]), window = tonumber(ARGV[4]), seed = tonumber(ARGV[14]) },
  { limit = tonumber(ARGV[5]), window = tonumber(ARGV[6]), seed = tonumber(ARGV[15]) },
}
local factor, held, back = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local need, ahead, owed = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local lease, restores, idle = tonumber(ARGV[13]), ARGV[16] == '1', tonumber(ARGV[17])
-- A window in which all refills at once stands for tokens that come back after use.
local borrowed = buckets[1].limit >= 0 and buckets[1].window == 1

local fields = redis.call('HGETALL', KEYS[1])
local known, leases, outstanding, at, wanted = {}, {}, 0, now, 0
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if name == 'a' or name == 'b' or name == 't' then
    known[name] = tonumber(value)
  elseif name == 'w' then
    local who, expires = string.match(value, '^(%S+) (%d+)$')
    if who ~= gateway and tonumber(expires) > now then wanted = 1 end
  else
    local its_held, expires, its_sequence, its_idle = string.match(value, '^(%d+) (%d+) (%d+) ?(%d*)$')
    local one = { name = name, held = tonumber(its_held), expires = tonumber(expires),
      sequence = tonumber(its_sequence), idle = tonumber(its_idle) or 0 }
    leases[#leases + 1] = one
    outstanding = outstanding + one.held
  end
end
for i, name in ipairs({ 'a', 'b' }) do
  local bucket = buckets[i]
  bucket.debt = known[name] or bucket.seed
  if restores and i == 2 then bucket.debt = math.max(bucket.debt, bucket.seed) end
end
if known.t then
  at = known.t
  -- A small step back of the clock refills nothing until it has caught up; a large one was set.
  if at > now and at - now > 60000000 then at = now end
end

-- Brings the buckets to a moment: they pay back what is due, but for the tokens that gateways hold.
local function settle(moment)
  local elapsed = math.max(0, moment - at)
  for _, bucket in ipairs(buckets) do
    if bucket.limit >= 0 then
      local floor = math.min(outstanding, bucket.limit) * bucket.window
      local cap = factor * bucket.limit * bucket.window
      bucket.debt = math.max(floor, math.min(bucket.debt, cap) - elapsed * bucket.limit)
    else
      bucket.debt = 0
    end
  end
  at = math.max(at, moment)
end

-- A lease that has ended counts as spent from then on.
table.sort(leases, function(one, other) return one.expires < other.expires end)
local own
local idle_elsewhere = 0
for _, one in ipairs(leases) do
  if one.expires <= now then
    settle(one.expires)
    outstanding = outstanding - one.held
    redis.call('HDEL', KEYS[1], one.name)
  elseif one.name == gateway then
    own = one
  else
    idle_elsewhere = idle_elsewhere + one.idle
  end
end
settle(now)

if own and sequence <= own.sequence then
  return { -1, '0', '0', 0, 0, 0 }
end
if own then
  -- Nobody holds more than was granted; what is missing was spent. But what is in use is in use, whoever
  -- granted it.
  if not borrowed then held = math.min(held, own.held) end
  back = math.min(back, math.max(0, own.held - held))
  outstanding = outstanding - own.held + held
else
  back = 0
  outstanding = outstanding + held
end

local free, room = math.huge, math.huge
for _, bucket in ipairs(buckets) do
  if bucket.limit >= 0 then
    local floor = math.min(outstanding, bucket.limit) * bucket.window
    local cap = factor * bucket.limit * bucket.window
    local charged = borrowed and math.floor(owed / 1000) or owed * (bucket.window / 1000)
    bucket.debt = math.min(cap, math.max(floor, bucket.debt - back * bucket.window) + charged)
    free = math.min(free, math.floor((bucket.limit * bucket.window - bucket.debt) / bucket.window))
    -- What refills during a lease is not lent: even if all is forgotten here while gateways hold
    -- their tokens, no more than the limit is there.
    local refill = math.ceil(bucket.limit * math.min(1, lease / bucket.window))
    if borrowed then refill = 0 end
    room = math.min(room, math.max(1, bucket.limit - refill) - outstanding)
  end
end
local granted = math.max(0, math.min(need, free, room))
-- Of what is left, no more than a quarter is held for requests to come, so that the last tokens are
-- there for whoever asks.
granted = granted + math.max(0, math.min(ahead, math.floor((free - granted) / 4), room - granted))

local whole = function(number) return string.format('%.0f', number) end
local ends = 1000
for _, bucket in ipairs(buckets) do
  if bucket.limit >= 0 then
    bucket.debt = bucket.debt + granted * bucket.window
    local pays = bucket.limit > 0 and bucket.debt / bucket.limit or bucket.window
    ends = math.max(ends, math.ceil(pays / 1000))
  end
end
held = held + granted
if borrowed and granted < need then
  redis.call('HSET', KEYS[1], 'w', gateway .. ' ' .. whole(now + 1000000))
end
redis.call('HSET', KEYS[1], 'a', whole(buckets[1].debt), 'b', whole(buckets[2].debt), 't', whole(at))
if held > 0 then
  redis.call('HSET', KEYS[1], gateway, whole(held) .. ' ' .. whole(now + lease) .. ' ' .. whole(sequence) .. ' ' .. whole(idle))
elseif own then
  redis.call('HDEL', KEYS[1], gateway)
end
redis.call('PEXPIRE', KEYS[1], whole(ends + math.ceil(lease / 1000)))
local excess = borrowed and math.max(0, outstanding - buckets[1].limit) or 0
return { granted, whole(buckets[1].debt), whole(buckets[2].debt), idle_elsewhere, wanted, excess }
