-- Health of a FineTuneJob for Argo CD. The operator's Ready condition follows spec.readyWhen, so this script only reads
-- conditions: Failed or Stalled (somebody has to act) is Degraded, Suspended or a plan that waits for approval is Suspended,
-- Complete or Ready is Healthy, anything else (waiting for nodes and quota too) is Progressing.
local health = {status = "Progressing", message = "Waiting for the operator"}
local status = obj.status
if status == nil or status.conditions == nil then
  return health
end
if status.observedGeneration ~= nil and obj.metadata.generation ~= nil and status.observedGeneration ~= obj.metadata.generation then
  return health
end

local conditions = {}
for _, condition in ipairs(status.conditions) do
  conditions[condition.type] = condition
end
local function is_true(name)
  return conditions[name] ~= nil and conditions[name].status == "True"
end
local function health_of(word, name)
  return {status = word, message = conditions[name].message or conditions[name].reason or ""}
end

if is_true("Failed") then return health_of("Degraded", "Failed") end
if is_true("Stalled") then return health_of("Degraded", "Stalled") end
if is_true("Complete") then return health_of("Healthy", "Complete") end
if is_true("Suspended") then return health_of("Suspended", "Suspended") end
local plan = conditions.PlanAccepted
if plan ~= nil and plan.status == "False" and plan.reason == "AwaitingApproval" then return health_of("Suspended", "PlanAccepted") end
if is_true("Ready") then return health_of("Healthy", "Ready") end
health.message = status.message or status.reason or status.phase or health.message
return health
