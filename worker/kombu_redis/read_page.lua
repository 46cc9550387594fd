-- Returns the sizes and the first bytes of some messages of a list, from a position on. Their whole
-- texts may need more memory than the reader has.
local list = KEYS[1]
local start, count, max_bytes = unpack(ARGV)

local page = {}
if redis.call('TYPE', list).ok ~= 'list' then return page end
for position = start, start + count - 1 do
  local message = redis.call('LINDEX', list, position)
  if not message then break end
  table.insert(page, #message)
  table.insert(page, string.sub(message, 1, max_bytes))
end
return page
