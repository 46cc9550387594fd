-- A job's own webhook: the deliveries of its events, written in the change that they report.

local deliveries_key = job_key .. keys.deliveries_suffix

-- include: deliveries.lua

-- The name by which a webhook asks for an event; nil if it may not.
local function webhook_name(event)
  if event.kind == 'ended' then return event.status end
  if event.kind == 'stage_started' then return event.attempt == 1 and 'started' or nil end
  local names = {
    accepted = 'accepted', progress = 'progress', checkpoint = 'checkpoint',
    validation_images = 'sample'}
  return names[event.kind]
end

local function is_wanted(webhook, name)
  for _, wanted in ipairs(webhook.events) do
    if wanted == name then return true end
  end
  return false
end

-- Lets the newest progress replace one that is pending. Returns whether that is all there is to do:
-- an unsent one has its place, or the last one was a moment ago.
local function replace_progress(text, newest, sent_at, interval_s)
  local earlier = newest and redis.call('HGET', deliveries_key, newest)
  local delivery = earlier and cjson.decode(earlier)
  local is_pending = delivery and delivery.status == 'pending'
  if is_pending and delivery.attempts == 0 then
    delivery.at, delivery.text = now, text
    redis.call('HSET', deliveries_key, newest, cjson.encode(delivery))
    return true
  end
  if sent_at and now - sent_at < interval_s then return true end
  if is_pending then
    delivery.status, delivery.due_at = 'superseded', nil
    redis.call('HSET', deliveries_key, newest, cjson.encode(delivery))
    redis.call('ZREM', pending_key(get('tenant')), job_id .. ' ' .. newest)
    redis.call('HINCRBY', deliveries_key, 'pending', -1)
  end
  return false
end

-- Writes the delivery of an event, whose JSON is `text`, if the job's webhook asks for it.
local function deliver(text)
  local webhook, event = cjson.decode(get('webhook')), cjson.decode(text)
  local name = webhook_name(event)
  if not name or not is_wanted(webhook, name) then return end
  local state = redis.call('HMGET', deliveries_key, 'gone', 'pending', 'progress', 'progress_at')
  if state[1] then return end
  if name == 'progress'
    and replace_progress(text, state[3], state[4], webhook.progress_interval) then return end
  local delivery = {event = name, at = now, text = text, status = 'pending', attempts = 0}
  if event.kind == 'ended' then
    delivery.result = get('result') or nil
    delivery.error_code = get('error_code') or nil
    delivery.error_stage = get('error_stage') or nil
    delivery.error = get('error') or nil
  end
  local pending = pending_key(get('tenant'))
  local is_full = tonumber(state[2] or 0) >= limits.job_pending
    or redis.call('ZCARD', pending) >= limits.tenant_pending
  -- The others come once a job, and are never dropped.
  if is_full and (name == 'progress' or name == 'sample' or name == 'checkpoint') then
    delivery.status, delivery.reason = 'dropped', 'too many deliveries are pending'
    count(metrics.job_webhooks, 'dropped')
  end
  local sequence = redis.call('HINCRBY', deliveries_key, 'sequence', 1)
  redis.call('HSET', deliveries_key, sequence, cjson.encode(delivery))
  if name == 'progress' then
    redis.call('HSET', deliveries_key, 'progress', sequence, 'progress_at', now)
  end
  if delivery.status == 'pending' then
    redis.call('HINCRBY', deliveries_key, 'pending', 1)
    redis.call('ZADD', pending, now, job_id .. ' ' .. sequence)
    schedule_tenant(get('tenant'))
  end
  local oldest = sequence - limits.deliveries
  if not redis.call('ZSCORE', pending, job_id .. ' ' .. oldest) then
    redis.call('HDEL', deliveries_key, oldest)
  end
  for _, key in ipairs({deliveries_key, pending, keys.webhook_tenants}) do renew_ttl(key) end
end

-- Delivers an event of a job with a webhook. No job fails by what cannot be read of its deliveries.
local function report(text)
  if get('webhook') and not pcall(deliver, text) then count(metrics.job_webhooks, 'dropped') end
end
