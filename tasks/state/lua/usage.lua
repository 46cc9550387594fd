-- What tenants use in a month, and their quotas of it. Needs `time` and `keys`. A counter or a quota
-- that cannot be read stops no job: it is left as it is, and counts as none.

-- The month of the broker's clock, in UTC: 2026-11. The calendar is that of Howard Hinnant's
-- "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
local function this_month()
  local days = math.floor(time[1] / 86400) + 719468
  local era = math.floor(days / 146097)
  local day = days - era * 146097
  local year = math.floor((day - math.floor(day / 1460) + math.floor(day / 36524)
    - math.floor(day / 146096)) / 365)
  local day_of_year = day - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local from_march = math.floor((5 * day_of_year + 2) / 153)
  local month = from_march < 10 and from_march + 3 or from_march - 9
  return string.format('%04d-%02d', year + era * 400 + (month <= 2 and 1 or 0), month)
end

local function usage_key(tenant) return keys.usage .. ':' .. this_month() .. ':' .. tenant end

-- Adds to what a tenant has used this month: `amounts` maps fields to whole numbers. A month's keys
-- live from the first uses in it, since every job pays for this.
local function add_usage(tenant, amounts)
  local tenants = keys.usage .. ':' .. this_month()
  local key, is_new = tenants .. ':' .. tenant, false
  for field, by in pairs(amounts) do
    is_new = redis.pcall('HINCRBY', key, field, by) == by or is_new
  end
  if not is_new then return end
  redis.pcall('SADD', tenants, tenant)
  for _, name in ipairs({key, tenants}) do redis.call('EXPIRE', name, limits.usage_ttl_s) end
end

-- A tenant's quotas, or those of every tenant without its own.
local function quotas_of(tenant)
  local texts = redis.pcall('HMGET', keys.quotas, tenant, '*')
  local text = texts[1] or texts[2]
  if not text then return {} end
  local is_read, quotas = pcall(cjson.decode, text)
  return is_read and type(quotas) == 'table' and quotas or {}
end

-- Names the monthly quota that a tenant has used up, if any: its waiting jobs are held.
local function used_up_quota(tenant)
  local quotas = quotas_of(tenant)
  local gpu_hours, money = tonumber(quotas.gpu_hours), tonumber(quotas.money)
  if not gpu_hours and not money then return nil end
  local used = redis.pcall('HMGET', usage_key(tenant), 'gpu_ms', 'cost_micros')
  if gpu_hours and (tonumber(used[1]) or 0) >= gpu_hours * 3.6e6 then return 'gpu_hours' end
  if money and (tonumber(used[2]) or 0) >= money * 1e6 then return 'money' end
  return nil
end

-- Names the quota that refuses another job of a tenant, if any.
local function refusing_quota(tenant)
  local quotas, waiting = quotas_of(tenant), 0
  local max_waiting = tonumber(quotas.max_waiting)
  if max_waiting then
    for _, queue in ipairs(redis.call('SMEMBERS', keys.tenant_queues)) do
      waiting = waiting + (tonumber(redis.pcall('ZCARD', tenant_queue_key(queue, tenant))) or 0)
    end
    if waiting >= max_waiting then return 'max_waiting' end
  end
  return quotas.hold ~= true and used_up_quota(tenant) or nil
end

-- By tenant: hundreds may wait, each in front of many queues.
local is_within = {}

-- Those of the tenants whose jobs no quota holds.
local function tenants_within_quotas(tenants)
  if redis.call('EXISTS', keys.quotas) == 0 then return tenants end
  local within = {}
  for _, tenant in ipairs(tenants) do
    if is_within[tenant] == nil then is_within[tenant] = not used_up_quota(tenant) end
    if is_within[tenant] then table.insert(within, tenant) end
  end
  return within
end
