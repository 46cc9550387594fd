-- Claims up to `limit` of the entries that are neither in the cache nor claimed, in order. A start
-- takes over the claims of earlier starts of its job, never of later ones. Returns the claimed ones.
local function parse(name)
  local job, attempt = string.match(name, '^(.*) (%d+)$')
  return job, tonumber(attempt)
end

local job, attempt = parse(owner)
local function is_free(key)
  local holder = redis.call('GET', key)
  if not holder then return true end
  local holder_job, holder_attempt = parse(holder)
  return holder_job == job and holder_attempt <= attempt
end

local claimed = {}
for _, digest in ipairs(digests) do
  if #claimed >= tonumber(limit) then break end
  local key = keys.claim_prefix .. digest
  if redis.call('HEXISTS', entries, digest) == 0 and is_free(key) then
    redis.call('SET', key, owner, 'PX', ttl_ms)
    table.insert(claimed, digest)
  end
end
return claimed
