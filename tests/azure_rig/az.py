"""The rig's `az`, which knows one command: az account get-access-token.

It is started by a script that each rig writes.
"""

import json
import sys
import time
import urllib.error
import urllib.request

door, secret, subscription, tenant = sys.argv[1:5]
given = sys.argv[5:]
if given[:2] != ["account", "get-access-token"]:
    sys.exit(f"ERROR: the rig's az does not know: {' '.join(given)}")
resource = given[given.index("--resource" if "--resource" in given else "--scope") + 1]
request = urllib.request.Request(
    f"{door}/az/token?resource={resource}", headers={"secret": secret}
)
try:
    token = json.load(urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request))
except urllib.error.HTTPError:
    sys.exit("ERROR: Please run 'az login' to setup account.")
end = int(token["expires_on"])
local = time.strftime("%Y-%m-%d %H:%M:%S.000000", time.localtime(end))
answer = {"accessToken": token["access_token"], "expiresOn": local, "expires_on": end}
print(json.dumps(answer | {"subscription": subscription, "tenant": tenant, "tokenType": "Bearer"}))
