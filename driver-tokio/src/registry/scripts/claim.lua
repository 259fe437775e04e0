-- KEYS: attachments, epoch, memory of this claim.
-- ARGV: echo, agent, replica, incarnation, instance, claim id, nonce, seen,
-- connectors, ms a claim is remembered, epochs per ms, how far `seen` may lead what is stored and the clock,
-- the epoch known to have been granted before.
-- A retry is answered from the memory of the claim, or from the attachment it
-- made; both change nothing (O5).
local remembered = typed(KEYS[3], 'string') and record(redis.call('GET', KEYS[3]))
if remembered and type(remembered.superseded) == 'table' and type(remembered.nonce) == 'string'
    and epoch(remembered.epoch) then
  return answer('claimed', remembered.epoch, remembered.nonce, unpack(remembered.superseded))
end
local hash = typed(KEYS[1], 'hash')
local own = hash and record(redis.call('HGET', KEYS[1], ARGV[3]))
if own and own.claim == ARGV[6] and type(own.nonce) == 'string' and epoch(own.epoch) then
  return answer('claimed', own.epoch, own.nonce)
end

local stored = typed(KEYS[2], 'string') and epoch(redis.call('GET', KEYS[2])) or 0
stored = math.max(stored, tonumber(ARGV[13]))
local time = redis.call('TIME')
local floor = (time[1] * 1000 + math.floor(time[2] / 1000)) * ARGV[11]
local base = math.max(stored, floor)
local granted = math.max(base, math.min(tonumber(ARGV[8]), base + ARGV[12])) + 1
if granted > EPOCH_LIMIT then return redis.error_reply('NCEPOCH used up') end
-- '%.0f' and never tostring: that writes 14 digits and would repeat epochs.
local text = string.format('%.0f', granted)

-- The epoch first: were the rest refused, a gap is all that remains.
redis.call('SET', KEYS[2], text)
local superseded = {}
if hash then
  local all = redis.call('HGETALL', KEYS[1])
  for i = 1, #all, 2 do
    local r = record(all[i + 1])
    if r and r.replica == all[i] and r.instance ~= ARGV[5] then
      superseded[#superseded + 1] = all[i + 1]
      redis.call('HDEL', KEYS[1], all[i])
    end
  end
else
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], ARGV[3], cjson.encode({v = SCHEMA, agent = ARGV[2], replica = ARGV[3], inc = ARGV[4],
  instance = ARGV[5], claim = ARGV[6], nonce = ARGV[7], epoch = text, connectors = ARGV[9]}))
redis.call('SET', KEYS[3], cjson.encode({v = SCHEMA, epoch = text, nonce = ARGV[7], superseded = superseded}),
  'PX', ARGV[10])
return answer('claimed', text, ARGV[7], unpack(superseded))
