# healthy.sh PORT MODEL: exit status 0 if the model is served over REST on this port of this machine. Metadata is
# available once a version is loaded; the status endpoint responds earlier. The image has neither curl nor wget.
exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
printf 'GET /v1/models/%s/metadata HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' "$2" >&3
read -r status <&3
[[ $status == HTTP/*" 200 "* ]]
