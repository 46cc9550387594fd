-- The GPU time of a job, by start. `gpu_start` has the memory class of the start's queue, the price of
-- its hour and the currency (`-` if unknown), and when it began.

-- How old the last sign of life of a running start may be, in seconds.
local alive_every_s = 15

local function begin_gpu_time(class, price, currency)
  if class == '' then return end
  local fields = {class, price ~= '' and price or '-', currency ~= '' and currency or '-', now}
  set({gpu_start = table.concat(fields, ' '), alive_at = now})
end

local function is_gpu_time_running() return get('gpu_start') end

-- Notes that the running start lives: if it is lost, it has used its GPU until here.
local function note_alive()
  if is_gpu_time_running() and now - (tonumber(get('alive_at')) or 0) >= alive_every_s then
    set({alive_at = now})
  end
end

local function drop_gpu_time() unset('gpu_start', 'alive_at') end

-- Adds the start's time until `ended_at` to the job and to what its tenant uses.
local function end_gpu_time(ended_at)
  if not is_gpu_time_running() then return end
  local class, price, currency, began_at = string.match(
    get('gpu_start'), '^(%S+) (%S+) (%S+) (%S+)$')
  began_at, ended_at = tonumber(began_at), tonumber(ended_at)
  if not began_at or not ended_at then return drop_gpu_time() end  -- they cannot be read
  local ms = math.max(0, math.floor((ended_at - began_at) * 1000 + 0.5))
  local amounts = {gpu_ms = ms, ['gpu_ms:' .. class] = ms}
  if price == '-' then amounts.unpriced_gpu_ms = ms
  else amounts.cost_micros = math.floor(ms * price / 3.6 + 0.5) end
  for field, by in pairs(amounts) do add_to(field, by) end
  add_usage(get('tenant') or '', amounts)
  if currency ~= '-' then
    set({currency = currency})
    redis.pcall('HSET', usage_key(get('tenant') or ''), 'currency', currency)
  end
  add_counts({[metrics.gpu_seconds .. '|' .. class] = math.floor(ms / 1000 + 0.5)})
  drop_gpu_time()
end
