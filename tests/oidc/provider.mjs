// A real OpenID Connect provider for the tests, at a port of its own choosing.
//
// Lines of JSON on standard input steer it: {"users": {...}}, {"client": {...}}, {"keys": [...]}.
// It answers each with one line; the first line that it says is its issuer.
import { createServer } from "node:http";
import { createInterface } from "node:readline";

import { Provider } from "oidc-provider";

let users = {};
let client = { redirect_uris: ["http://127.0.0.1:8445/oidc/callback"] };
let keys;
let answer;

function account(ctx, sub) {
  const known = users[sub];
  if (!known) return undefined;
  return { accountId: sub, claims: () => ({ sub, ...known }) };
}

function made(issuer) {
  const provider = new Provider(issuer, {
    clients: [{
      client_id: "consilia",
      client_secret: "a secret of the tests: not one",
      grant_types: ["authorization_code", "refresh_token"],
      response_types: ["code"],
      ...client,
    }],
    ...(keys ? { jwks: { keys } } : {}),
    cookies: { keys: ["of the tests"] },
    findAccount: account,
    claims: { openid: ["sub"], profile: ["preferred_username", "groups"] },
    scopes: ["openid", "offline_access"],
    pkce: { required: () => true },
    features: { devInteractions: { enabled: true } },
    ttl: { AccessToken: 600, AuthorizationCode: 60, IdToken: 600, RefreshToken: 3600, Interaction: 600, Session: 3600, Grant: 3600 },
  });
  return provider.callback();
}

const server = createServer((request, response) => answer(request, response));
server.listen(0, "127.0.0.1", () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  answer = made(issuer);
  createInterface({ input: process.stdin }).on("line", (line) => {
    const said = JSON.parse(line);
    users = said.users ?? users;
    client = said.client ?? client;
    keys = said.keys ?? keys;
    if (said.client || said.keys) answer = made(issuer);
    process.stdout.write("done\n");
  }).on("close", () => process.exit(0));
  process.stdout.write(`${issuer}\n`);
});
