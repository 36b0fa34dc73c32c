# healthy.sh PORT MODEL: whether this machine serves the model over REST on the port. Its metadata are there as soon as a
# version is loaded; its status is answered while it is still being loaded. The image has neither curl nor wget.
exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
printf 'GET /v1/models/%s/metadata HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&3
read -r status <&3
[[ $status == HTTP/*" 200 "* ]]
