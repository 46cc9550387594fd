-- Returns what decides which job is dispatched next.

-- include: fleet.lua

return dispatch_candidates()
