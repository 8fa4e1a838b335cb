import { Box, Center, Container, Loader } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useEffect, useRef, useState } from "react";
import { Redirect, Route, Switch, useLocation } from "wouter";

import { Problem } from "../shared/api/request";
import { useServer } from "../shared/api/server";
import { useText } from "../shared/text/language";
import { Boundary } from "../shared/ui/boundary";
import { Page } from "../shared/ui/page";
import { Failure, Waiting } from "../shared/ui/states";
import type { SessionView } from "./api/roles";
import { SessionContext, useClient } from "./api/use";
import { Invitation } from "./pages/invitation";
import { SetUpSecondFactor } from "./pages/second-factor";
import { SignIn } from "./pages/sign-in";
import { Shell } from "./shell";

const Home = lazy(() => import("./pages/home"));
const Datasets = lazy(() => import("./pages/datasets"));
const AddDataset = lazy(() => import("./pages/add-dataset"));
const Dataset = lazy(() => import("./pages/dataset"));
const LoadingPlans = lazy(() => import("./pages/loading-plans"));
const LoadingPlan = lazy(() => import("./pages/loading-plan"));
const Studies = lazy(() => import("./pages/studies"));
const Study = lazy(() => import("./pages/study"));
const Harmony = lazy(() => import("./pages/harmony"));
const Pool = lazy(() => import("./pages/pool"));
const OptOut = lazy(() => import("./pages/opt-out"));
const Plans = lazy(() => import("./pages/plans"));
const Plan = lazy(() => import("./pages/plan"));
const Runs = lazy(() => import("./pages/runs"));
const JobLog = lazy(() => import("./pages/job-log"));
const Policy = lazy(() => import("./pages/policy"));
const Ledger = lazy(() => import("./pages/ledger"));
const Audit = lazy(() => import("./pages/audit"));
const Health = lazy(() => import("./pages/health"));
const Accounts = lazy(() => import("./pages/accounts"));
const Settings = lazy(() => import("./pages/settings"));

function Pages() {
  const { say } = useText();
  return (
    <Suspense fallback={<Waiting />}>
      <Switch>
        <Route path="/" component={Home} />
        <Route path="/datasets" component={Datasets} />
        <Route path="/datasets/add" component={AddDataset} />
        <Route path="/datasets/:name">{({ name }) => <Dataset name={decodeURIComponent(name)} />}</Route>
        <Route path="/loading-plans" component={LoadingPlans} />
        <Route path="/loading-plans/:name">
          {({ name }) => <LoadingPlan name={decodeURIComponent(name)} />}
        </Route>
        <Route path="/studies" component={Studies} />
        <Route path="/studies/:digest">
          {({ digest }) => <Study digest={decodeURIComponent(digest)} />}
        </Route>
        <Route path="/studies/:digest/harmony">
          {({ digest }) => <Harmony digest={decodeURIComponent(digest)} />}
        </Route>
        <Route path="/studies/:digest/pool">
          {({ digest }) => <Pool digest={decodeURIComponent(digest)} />}
        </Route>
        <Route path="/opt-out" component={OptOut} />
        <Route path="/plans" component={Plans} />
        <Route path="/plans/:digest">{({ digest }) => <Plan digest={decodeURIComponent(digest)} />}</Route>
        <Route path="/runs" component={Runs} />
        <Route path="/runs/log" component={JobLog} />
        <Route path="/policy" component={Policy} />
        <Route path="/ledger" component={Ledger} />
        <Route path="/audit" component={Audit} />
        <Route path="/health" component={Health} />
        <Route path="/accounts" component={Accounts} />
        <Route path="/settings" component={Settings} />
        <Route>
          <Page title={say("error.page")} lead={say("error.page.hint")}>{null}</Page>
        </Route>
      </Switch>
    </Suspense>
  );
}

/** The door in front of a page whose session has ended: what was typed there waits behind it. */
function Again({ site }: { site: string }) {
  const door = useRef<HTMLDivElement>(null);
  useEffect(() => {
    // An open dialog lies beside the page in the document: nobody reaches it without signing in.
    const beside = [...document.body.children].filter((one) => !one.contains(door.current));
    for (const one of beside) one.setAttribute("inert", "");
    return () => { for (const one of beside) one.removeAttribute("inert"); };
  }, []);
  return (
    <Box ref={door} pos="fixed" inset={0} bg="var(--mantine-color-body)" style={{ zIndex: 1000, overflow: "auto" }}>
      <SignIn site={site} ended />
    </Box>
  );
}

/** Who is there decides what is shown: the doors (sign-in, invitation) or the console. */
export function App() {
  const client = useClient();
  const server = useServer();
  const [location] = useLocation();
  const session = useQuery({ queryKey: ["session"], queryFn: client.session });

  const csrf = session.data?.csrf ?? "";
  useEffect(() => server.rememberToken(csrf), [server, csrf]);

  // Whose page this is: another person who signs in gets a new one, with nothing of theirs in it.
  const [owner, setOwner] = useState<SessionView | null>(null);
  const there = session.data?.signed_in ? session.data : null;
  if (there && there !== owner && (!owner || owner.name === there.name)) setOwner(there);
  const other = owner !== null && there !== null && owner.name !== there.name;
  useEffect(() => {
    if (other) window.location.assign("/");
  }, [other]);

  if (location === "/invitation") return <Invitation />;
  if (session.isPending || other) {
    return (
      <Center h="100vh">
        <Loader type="dots" />
      </Center>
    );
  }
  if (session.isError && !owner && !(session.error instanceof Problem && session.error.status === 401)) {
    return (
      <Container size="xs" py={120}>
        <Failure error={session.error} retry={() => void session.refetch()} />
      </Container>
    );
  }
  const shown = there ?? owner;
  const ended = session.data?.signed_in === false;
  if (!shown) return <SignIn site={session.data?.site ?? ""} />;
  if (location === "/sign-in") return <Redirect to="/" />;
  return (
    <SessionContext value={shown}>
      {ended && <Again site={shown.site} />}
      {shown.must_add_second_factor ? (
        <SetUpSecondFactor />
      ) : (
        <div hidden={ended}>
          <Shell>
            <Boundary key={location}>
              <Pages />
            </Boundary>
          </Shell>
        </div>
      )}
    </SessionContext>
  );
}
