"""The words of the providers' errors: codes and sentences, and the cause that each of them names.

A pattern is no list of known errors, but the part of the wording that families share. Add a family's error to
tests/provider_bodies.py first, and change a pattern here only if the error is not understood.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

Kind = Literal[
    "context",  # the request is longer than the model's context
    "content",  # a filter refused the content
    "quota",  # no money or credit is left
    "tools",  # the model can't use tools
    "model",  # there is no such model
    "refused",  # not in this country, or not under these terms
    "address",  # the address does not lead to this API
    "page",  # a web page answers
    "rate",
    "key",
    "unavailable",
    "request",
    "unreadable",
]
Patterns = Sequence[tuple[Kind, re.Pattern[str]]]


def _patterns(words: Mapping[Kind, Sequence[str]]) -> Patterns:
    return [(kind, re.compile("|".join(patterns))) for kind, patterns in words.items()]


# Of codes, letters and digits alone, in lower case. The bare numbers are codes of Mistral and Zhipu.
CODES = _patterns(
    {
        "context": (
            r"contextlength|contextwindow|contextsize|contextoverflow|exceedcontext",
            r"prompt(is)?toolong|inputtoolong|requesttoolarge|stringabovemaxlength|tokenlimitexceeded",
            r"^3051$|^1261$|^1039$|^336007$",
        ),
        "content": (
            r"contentfilter|contentpolicy|contentblocked|responsibleai|datainspection|prohibitedcontent|sensitive(content|word)",
            r"promptblocked|moderation|usagepolicy|policyviolation|safetyviolation|guardrail|unsaferequest",
            r"^safety$|^1301$",
        ),
        "quota": (
            r"insufficient(user)?(quota|balance|credit|fund)|quotaexhausted|exceededcurrentquota|billing|^creditserror",
            r"budgetexceeded|exceededbudget|arrearage|overdue|paymentrequired|freetieronly|setlimitexceeded",
            r"^1113$|^2056$",
        ),
        "tools": (r"tools?(use|calling)?(not|un)supported|functioncalling(not|un)supported",),
        "model": (
            r"modelnotfound|model(does)?notexist|invalidmodel|unknownmodel|deploymentnotfound|modelnotsupported",
            r"modeldecommissioned|modelnot(open|available)|modelaccessdenied|^1211$",
        ),
        "refused": (r"unsupportedcountry|regionnotsupported|termsrequired",),
        "rate": (
            r"ratelimit|toomanyrequests|resourceexhausted|throttl|capacityexceeded|limitburst",
            r"^130[0235]$",
        ),
        "key": (
            r"apikey|authentication|unauthori[sz]ed|unauthenticated|permission(denied|error)|accessdenied",
            r"(?<!extra)forbidden",  # Pydantic's `extra_forbidden` is a field that the provider does not know
            r"invalidtoken|accountdeactivated",
        ),
        # Groq: the model has written a call that can't be read. The next attempt may be better.
        "unavailable": (r"^tooluse(failed)$|^outputparsefailed$",),
    }
)
# They say little, so sentences go before them.
VAGUE_CODES = _patterns(
    {
        "unavailable": (r"overloaded|unavailable|timeout|badgateway|deadlineexceeded|notready",),
        "request": (
            r"invalidrequest|badrequest|invalidargument|validation|unsupported(parameter|value)|invalid(value|param)",
        ),
    }
)

# A limit of the output, which a shorter thread does not change: a setting of the operator's is wrong.
OUTPUT_LIMIT = re.compile(
    r"completion tokens, whereas|maximum value for .?max_|valid range of max_|integer above maximum"
    r"|lower than (or equal to )?\d+\.?$"
)
# A limit of tokens in a time. It is no word about the length of one request, unless the request alone exceeds it.
RATE = re.compile(r"(per|/)[ -]?(second|min(ute)?|hour|day)\b|\b[tr]p[md]\b|rate.?limit|throttl|please wait|slow down")
ALONE = re.compile(r"request (is )?too large")

# Of sentences, in lower case.
SENTENCES = _patterns(
    {
        "address": (
            r"unexpected endpoint|(invalid|unknown|unrecognized)( request)? url|no route for|cannot post /",
            r"api.?version (is )?(not|un) ?supported",
        ),
        "tools": (
            r"(not|n't|un) ?supports? (the )?(tool|function)|support tool use|not supported for (tool|function)",
            r"auto-tool-choice|tools param requires",
            r"(unrecognized|unknown|unexpected|unsupported|extra)\b.{0,40}[`'\"]?\btools\b",
            r"(tools?|functions?|(tool|function)[ -]?(use|calls?|calling))[`'\"]* (is |are )?"  # noqa: ISC004  # one pattern
            r"((not|un) ?|(currently not|not currently) )(supported|enabled|available)",
        ),
        "refused": (
            r"(country|region|location)\b.{0,40}(not|un) ?(supported|available)|not (supported|available) in your",
            r"data policy|requires terms|must be verified|organi[sz]ation (has been|is) (restricted|disabled)",
        ),
        "content": (
            r"content (management )?(policy|policies|filter)|filtered due to|inappropriate content|content exists risk",
            r"(flagged|blocked|rejected|refused|violat\w*)\b.{0,80}\b(polic\w+|safety|moderat\w+|guidelines?|terms)",
            r"requires moderation|(prohibited|unsafe|sensitive|harmful) (content|use)|prompt (was|has been) blocked",
            r"safety (system|settings|filter|check)|considered high risk",
            r"guardrail\b.{0,60}\b(failed|blocked|intervened)|sensitive (information|words)",
            r"new_sensitive|敏感|不安全|违规",
        ),
        "quota": (
            r"insufficient[ _](account )?(balance|credit|quota|fund)|credit balance|(more|enough|any|of) credits",
            r"only afford|exceeded your current quota(?!.*(google|gemini|retry))|recharge|overdue|arrear",
            r"payment required|budget (has been|was) exceeded|exceededbudget",
            r"(spend(ing)?|key|api usage|(weekly|monthly)( usage)?) limit",
            r"balance is (insufficient|too low|not enough)|included credits|余额不足|欠费|额度.{0,4}(不足|用尽|用完)",
            r"free (tier|trial)\b.{0,40}exhausted|(exhausted|used up)\b.{0,30}\bfree\b|out of .{0,20}quota",
            r"inactive subscription|requires? an? .{0,20}subscription",
        ),
        "context": (
            r"context (length|size|window|limit)|(prompt|input|sequence|messages?) (length|size)\b.{0,40}exceed",
            r"(prompt|input|message|request|conversation|context)s?\b.{0,30}\btoo (long|large|big)",
            r"(maximum|max|allowed|model) (prompt|input|sequence|model|token) (length|limit|tokens)",
            r"token (count|limit)\b.{0,40}(exceed|only supports)|max(imum)? input characters",
            r"exceed\w*\b.{0,60}\b(token|length) limit",
            r"exceed\w*\b.{0,60}\b(maximum|max|limit)\b.{0,40}\btokens?\b|too many (input )?tokens",
            r"tokens (in|of) .{0,40}(exceed|more than)|(prompt|inputs?)[`'\"]* tokens? .{0,40}(exceed|must)",
            r"reduce (the |your )?(length|size|number) of (the |your )?(message|input|prompt|token)",
            r"must have less than \d+ tokens|exceeds? max\w* length|range of input length",
            r"max_(seq|model)_len|\bn_ctx\b|(input )?tokens? (exceed|too long)|超长|超过.{0,8}(长度|上限)",
            r"(prompt|sequence|input) length\b.{0,60}(greater|maximum|\bmax)|number of input tokens exceeds",
        ),
        "model": (
            r"\b(models?|deployment)\b.{0,120}(not found|n[o']t exist|not a valid|not (available|supported)"  # noqa: ISC004  # one pattern
            r"|no longer|unknown"
            r"|no such|decommissioned|deprecated|identifier is invalid|removed|retired|n[o']t have access|inaccess)",
            r"(invalid|unknown|no such|unsupported|not a valid|non-existent) model|no endpoints found|try pulling it",
            r"not found (for account|the model)|no (allowed|available) providers|no healthy deployments|model disabled",
            r"non-serverless model|on-demand throughput",
            r"\bmodel\b.{0,60}\b(end of (its )?life|as legacy|only supported in)",
            r"does not work with the specified model|无权访问模型",
            r"access (to )?model|could not find\b.{0,30}\bmodel|no models? loaded|^model: ",
        ),
        "key": (
            r"(invalid|incorrect|wrong|missing|expired|no|bad|provide)\b.{0,20}\b(api.?key|credential|auth(enti|ori)\w+|auth\b)",
            r"api.?key\b.{0,40}(invalid|not valid|incorrect|expired|missing|revoked|disabled)|unauthori[sz]ed",
            r"access token (invalid|expired)|login fail",
            r"(invalid|expired) (access |api |bearer )?token\b|authentication (failed|fails|required)",
        ),
        "rate": (
            RATE.pattern,
            r"too many requests|concurren\w+ limit|request limit|resource exhausted|capacity exceeded|频率|并发",
        ),
        "unavailable": (
            r"overloaded|high demand|temporarily|try again later|loading model|is loading|has crashed|\bdegraded\b",
        ),
        "request": (r"invalid (request|value|param\w*|argument|type|schema|message)|unsupported (parameter|value)",),
    }
)
# A code within a sentence.
CODE_IN_SENTENCE = re.compile(r"\b[a-z]+(?:_[a-z]+)+\b|\b[A-Z][a-z]+(?:[A-Z]+[a-z]+)+\b")
STATUS_IN_SENTENCE = re.compile(r"\b(?:error code|status code|status|http)[:=]? (\d{3})\b", re.IGNORECASE)
