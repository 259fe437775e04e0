-- KEYS: agents, connectors, then the index of each connector.
-- ARGV: echo, agent, then the name of each connector.
-- Scores only ever rise, so a sweeper that decided on an older score does not
-- remove an entry announced since.
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local function touch(key, member)
  local score = micros
  if typed(key, 'zset') then
    local old = redis.call('ZSCORE', key, member)
    if old then score = math.max(score, tonumber(old) + 1) end
  else
    redis.call('DEL', key)
  end
  redis.call('ZADD', key, string.format('%.0f', score), member)
end
touch(KEYS[1], ARGV[2])
for i = 3, #KEYS do
  touch(KEYS[2], ARGV[i])
  touch(KEYS[i], ARGV[2])
end
return answer('done')
