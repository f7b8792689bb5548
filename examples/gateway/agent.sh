#!/bin/sh
# One attempt of an agent that has only curl. GATEWAY_URL and GATEWAY_KEY are those of train.py.
set -eu

post() { # URL KEY BODY
    curl --silent --show-error --fail "$1" --data "$3" \
        --header "Authorization: Bearer $2" --header "Content-Type: application/json"
}
field() { # NAME, of the JSON on standard input
    sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"
}

attempt=$(post "$GATEWAY_URL/attempts" "$GATEWAY_KEY" '{"scenario_id": "sky"}')
id=$(echo "$attempt" | field id)
url=$(echo "$attempt" | field base_url)
key=$(echo "$attempt" | field api_key)
model=$(echo "$attempt" | field model_name)

question='{"role": "user", "content": "Is the sky blue? Answer in one word."}'
request="{\"model\": \"$model\", \"messages\": [$question], \"max_tokens\": 8}"
answer=$(post "$url/chat/completions" "$key" "$request") || {
    post "$GATEWAY_URL/attempts/$id/end" "$GATEWAY_KEY" '{"failure": "no answer"}'
    exit 1
}

case $answer in
    *'"content":"yes"'*) reward=1 ;;
    *) reward=0 ;;
esac
post "$GATEWAY_URL/attempts/$id/end" "$GATEWAY_KEY" "{\"reward\": $reward}"
