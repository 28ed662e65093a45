-- Argo CD's view of a FineTuneJob. The operator's Ready condition already knows spec.readyWhen, so this script only reads
-- conditions: Failed or Stalled is Degraded, Suspended or a plan that waits for approval is Suspended, Complete or Ready is
-- Healthy, anything else is Progressing.
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
local function say(word, name)
  return {status = word, message = conditions[name].message or conditions[name].reason or ""}
end

if is_true("Failed") then return say("Degraded", "Failed") end
if is_true("Stalled") then return say("Degraded", "Stalled") end
if is_true("Complete") then return say("Healthy", "Complete") end
if is_true("Suspended") then return say("Suspended", "Suspended") end
local plan = conditions.PlanAccepted
if plan ~= nil and plan.status == "False" and plan.reason == "AwaitingApproval" then return say("Suspended", "PlanAccepted") end
if is_true("Ready") then return say("Healthy", "Ready") end
health.message = status.message or status.reason or status.phase or health.message
return health
