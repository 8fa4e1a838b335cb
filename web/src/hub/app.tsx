import { Center, Container, Loader } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { lazy, Suspense } from "react";
import { Redirect, Route, Switch, useLocation } from "wouter";

import { Problem } from "../shared/api/request";
import { useText } from "../shared/text/language";
import { Boundary } from "../shared/ui/boundary";
import { Page } from "../shared/ui/page";
import { Failure, Waiting } from "../shared/ui/states";
import { PersonContext, useClient, useSession } from "./api/use";
import { whoIsThere } from "./api/who";
import { Invitation } from "./pages/invitation";
import { SetUpSecondFactor } from "./pages/second-factor";
import { SignIn } from "./pages/sign-in";
import { Shell } from "./shell";

const Home = lazy(() => import("./pages/home"));
const Studies = lazy(() => import("./pages/studies"));
const WriteStudy = lazy(() => import("./pages/write-study"));
const Study = lazy(() => import("./pages/study"));
const Plan = lazy(() => import("./pages/plan"));
const Experiments = lazy(() => import("./pages/experiments"));
const NewExperiment = lazy(() => import("./pages/new-experiment"));
const Experiment = lazy(() => import("./pages/experiment"));
const Models = lazy(() => import("./pages/models"));
const Compare = lazy(() => import("./pages/compare"));
const Model = lazy(() => import("./pages/model"));
const Sites = lazy(() => import("./pages/sites"));
const Budgets = lazy(() => import("./pages/budgets"));
const Audit = lazy(() => import("./pages/audit"));
const People = lazy(() => import("./pages/people"));
const Settings = lazy(() => import("./pages/settings"));

function Pages() {
  const { say } = useText();
  return (
    <Suspense fallback={<Waiting />}>
      <Switch>
        <Route path="/" component={Home} />
        <Route path="/studies" component={Studies} />
        <Route path="/studies/new">{() => <WriteStudy />}</Route>
        <Route path="/studies/:name/edit">{({ name }) => <WriteStudy name={decodeURIComponent(name)} />}</Route>
        <Route path="/studies/:name">{({ name }) => <Study name={decodeURIComponent(name)} />}</Route>
        <Route path="/plans/:digest">{({ digest }) => <Plan digest={decodeURIComponent(digest)} />}</Route>
        <Route path="/experiments" component={Experiments} />
        <Route path="/experiments/new" component={NewExperiment} />
        <Route path="/experiments/:id">{({ id }) => <Experiment key={id} id={decodeURIComponent(id)} />}</Route>
        <Route path="/models" component={Models} />
        <Route path="/models/compare" component={Compare} />
        <Route path="/models/:id">{({ id }) => <Model id={decodeURIComponent(id)} />}</Route>
        <Route path="/sites" component={Sites} />
        <Route path="/budgets" component={Budgets} />
        <Route path="/audit" component={Audit} />
        <Route path="/people" component={People} />
        <Route path="/settings" component={Settings} />
        <Route>
          <Page title={say("error.page")} lead={say("error.page.hint")}>{null}</Page>
        </Route>
      </Switch>
    </Suspense>
  );
}

/** Who is there decides what is shown: the doors (sign-in, invitation) or the dashboard. */
export function App() {
  const client = useClient();
  const session = useSession();
  const [location] = useLocation();
  const person = useQuery({ queryKey: ["person"], queryFn: () => whoIsThere(client, session), staleTime: 60_000 });

  if (location === "/invitation") return <Invitation />;
  if (person.isPending) {
    return (
      <Center h="100vh">
        <Loader type="dots" />
      </Center>
    );
  }
  const gone = person.error instanceof Problem && person.error.status === 401;
  if (person.isError && !person.data && !gone) {
    return (
      <Container size="xs" py={120}>
        <Failure error={person.error} retry={() => void person.refetch()} />
      </Container>
    );
  }
  if (!person.data || gone) return <SignIn />;  // any other failure passes, and nothing is lost
  if (location === "/sign-in") return <Redirect to="/" />;
  return (
    <PersonContext value={person.data}>
      {person.data.secondFactorDue ? (
        <SetUpSecondFactor />
      ) : (
        <Shell>
          <Boundary key={location}>
            <Pages />
          </Boundary>
        </Shell>
      )}
    </PersonContext>
  );
}
