-- Shared head of every script. All replies are flat arrays of strings:
-- {echo, bad, status, ...}. `echo` is ARGV[1], so that a reply that belongs to
-- another request is noticed (R10). `bad` counts values that were of a wrong
-- type, undecodable, too large or of another schema; they count as absent.
local SCHEMA = 1
local RECORD_MAX = 1048576
local EPOCH_LIMIT = 9007199254740991
local bad = 0

local function typed(key, want)
  local got = redis.call('TYPE', key)['ok']
  if got ~= want and got ~= 'none' then bad = bad + 1 end
  return got == want
end

local function record(raw)
  if not raw then return nil end
  if #raw <= RECORD_MAX then
    local ok, r = pcall(cjson.decode, raw)
    if ok and type(r) == 'table' and r.v == SCHEMA then return r end
  end
  bad = bad + 1
  return nil
end

-- Canonical decimal text up to 2^53 - 1, which a Lua number carries exactly.
local function epoch(text)
  if type(text) == 'string' and #text <= 16 and (text == '0' or string.match(text, '^[1-9]%d*$')) then
    local n = tonumber(text)
    if n <= EPOCH_LIMIT then return n end
  end
  bad = bad + 1
  return nil
end

local function answer(status, ...)
  return {ARGV[1], tostring(bad), status, ...}
end
