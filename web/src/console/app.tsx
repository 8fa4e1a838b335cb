import { Center, Container, Loader } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { lazy, Suspense, useEffect } from "react";
import { Redirect, Route, Switch, useLocation } from "wouter";

import { Problem } from "../shared/api/request";
import { useServer } from "../shared/api/server";
import { useText } from "../shared/text/language";
import { Boundary } from "../shared/ui/boundary";
import { Page } from "../shared/ui/page";
import { Failure, Waiting } from "../shared/ui/states";
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

/** Who is there decides what is shown: the doors (sign-in, invitation) or the console. */
export function App() {
  const client = useClient();
  const server = useServer();
  const [location] = useLocation();
  const session = useQuery({ queryKey: ["session"], queryFn: client.session });

  const csrf = session.data?.csrf ?? "";
  useEffect(() => server.rememberToken(csrf), [server, csrf]);

  if (location === "/invitation") return <Invitation />;
  if (session.isPending) {
    return (
      <Center h="100vh">
        <Loader type="dots" />
      </Center>
    );
  }
  if (session.isError && !(session.error instanceof Problem && session.error.status === 401)) {
    return (
      <Container size="xs" py={120}>
        <Failure error={session.error} retry={() => void session.refetch()} />
      </Container>
    );
  }
  const data = session.data;
  if (!data?.signed_in) return <SignIn site={data?.site ?? ""} />;
  if (location === "/sign-in") return <Redirect to="/" />;
  return (
    <SessionContext value={data}>
      {data.must_add_second_factor ? (
        <SetUpSecondFactor />
      ) : (
        <Shell>
          <Boundary key={location}>
            <Pages />
          </Boundary>
        </Shell>
      )}
    </SessionContext>
  );
}
