#!/bin/sh
# One attempt of any program that takes its model's address from the environment:
#
#   sh attempt.sh npx tsx agent.ts
#
# GATEWAY_URL and GATEWAY_KEY are those of train.py. The program gets the attempt's address and key
# as OPENAI_BASE_URL and OPENAI_API_KEY, ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY, and the model's
# name as MODEL; it does not get the gateway's key. The reward is 1 if it prints "yes".
set -eu

post() { # PATH BODY
    curl --silent --show-error --fail "$GATEWAY_URL$1" --data "$2" \
        --header "Authorization: Bearer $GATEWAY_KEY" --header "Content-Type: application/json"
}
field() { # NAME, of the JSON in $attempt
    echo "$attempt" | sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

attempt=$(post /attempts '{"scenario_id": "sky"}')
end=/attempts/$(field id)/end
url=$(field base_url)
key=$(field api_key)
output=$(
    env -u GATEWAY_KEY MODEL="$(field model_name)" OPENAI_BASE_URL="$url" OPENAI_API_KEY="$key" \
        ANTHROPIC_BASE_URL="${url%/v1}" ANTHROPIC_API_KEY="$key" "$@"
) || {
    post "$end" '{"failure": "the program failed"}'
    exit 1
}
case $output in
    *yes*) post "$end" '{"reward": 1}' ;;
    *) post "$end" '{"reward": 0}' ;;
esac
