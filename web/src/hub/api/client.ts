/** Every request of the dashboard, typed by the records of the hub's API (schema.ts is generated). */
import { address, type Server } from "../../shared/api/request";
import type * as wire from "./schema";

export type Query = Readonly<Record<string, string | number | boolean | null | undefined>>;
/** A part of a list; give `next` back as `cursor` for the part after it. */
export interface Listed<T> {
  readonly items: readonly T[];
  readonly next: string | null;
}

/** The hub's requests over one connection. Every method throws a Problem. */
export function hubClient(server: Server) {
  const get = <T>(path: string) => server.request("GET", path) as Promise<T>;
  const post = <T>(path: string, body?: unknown) => server.request("POST", path, body) as Promise<T>;
  const put = <T>(path: string, body: unknown) => server.request("PUT", path, body) as Promise<T>;
  const patch = <T>(path: string, body: unknown) => server.request("PATCH", path, body) as Promise<T>;
  const remove = (path: string, body?: unknown) => server.request("DELETE", path, body);

  return {
    signIn: (body: wire.Login) => post<wire.SignedIn>("/api/v1/auth/login", body),
    signOut: () => post<unknown>("/api/v1/auth/logout", {}),
    me: () => get<wire.MeView>("/api/v1/auth/me"),
    providers: () => get<readonly wire.ProviderView[]>("/api/v1/auth/providers"),
    changePassword: (body: wire.NewPassword) => post<wire.SignedIn>("/api/v1/auth/password", body),
    secondFactor: () => post<wire.SecondFactorView>("/api/v1/auth/second-factor", {}),
    confirmSecondFactor: (code: string) => post<unknown>("/api/v1/auth/second-factor/confirm", { code }),
    removeSecondFactor: (body: wire.Confirmed) => remove("/api/v1/auth/second-factor", body),
    acceptInvitation: (body: wire.AcceptInvitation) =>
      post<wire.SignedIn>("/api/v1/invitations/accept", body),
    whoami: () => get<wire.WhoamiView>("/api/v1/whoami"),

    users: (query: Query) => get<Listed<wire.UserView>>(address("/api/v1/users", {}, query)),
    changeUser: (name: string, body: wire.ChangeUser) =>
      patch<wire.UserView>(address("/api/v1/users/{name}", { name }), body),
    removeUser: (name: string) => remove(address("/api/v1/users/{name}", { name })),
    endSessions: (name: string) => post<wire.UserView>(address("/api/v1/users/{name}/end-sessions", { name }), {}),
    invitations: (query: Query) => get<Listed<wire.InvitationView>>(address("/api/v1/invitations", {}, query)),
    invitePerson: (body: wire.NewInvitation) =>
      post<wire.InvitationLink>("/api/v1/invitations", body),
    withdrawInvitation: (id: string) => remove(address("/api/v1/invitations/{id}", { id })),
    accessRequests: (query: Query) =>
      get<Listed<wire.AccessRequestView>>(address("/api/v1/access-requests", {}, query)),
    askAccess: (body: wire.AskAccess) =>
      post<wire.AccessRequestView>("/api/v1/access-requests", body),
    grantAccess: (id: string, reason: string) =>
      post<wire.AccessRequestView>(address("/api/v1/access-requests/{id}/grant", { id }), { reason }),
    refuseAccess: (id: string, reason: string) =>
      post<wire.AccessRequestView>(address("/api/v1/access-requests/{id}/refuse", { id }), { reason }),
    keys: (query: Query) => get<Listed<wire.KeyView>>(address("/api/v1/keys", {}, query)),
    makeKey: (body: wire.NewKey) => post<wire.KeyView>("/api/v1/keys", body),
    revokeKey: (id: string) => remove(address("/api/v1/keys/{id}", { id })),
    tokens: (query: Query) => get<Listed<wire.TokenView>>(address("/api/v1/tokens", {}, query)),
    revokeToken: (id: string) => remove(address("/api/v1/tokens/{id}", { id })),

    sites: (query: Query) => get<Listed<wire.SiteView>>(address("/api/v1/sites", {}, query)),
    inviteSite: (body: wire.Invite) => post<wire.JoinTokenView>("/api/v1/sites", body),
    revokeSite: (name: string) => post<wire.SiteView>(address("/api/v1/sites/{name}/revoke", { name })),

    studies: (query: Query) => get<Listed<wire.StudyView>>(address("/api/v1/studies", {}, query)),
    study: (name: string) => get<wire.StudyView>(address("/api/v1/studies/{name}", { name })),
    createStudy: (body: wire.Study) => post<wire.StudyView>("/api/v1/studies", body),
    changeStudy: (name: string, body: wire.Study) =>
      put<wire.StudyView>(address("/api/v1/studies/{name}", { name }), body),
    submitStudy: (name: string) => post<wire.StudyView>(address("/api/v1/studies/{name}/submit", { name })),
    reviseStudy: (name: string, body: wire.Study) =>
      post<wire.StudyView>(address("/api/v1/studies/{name}/revise", { name }), body),
    closeStudy: (name: string) => post<wire.StudyView>(address("/api/v1/studies/{name}/close", { name })),
    offers: (name: string) =>
      get<readonly wire.OfferView[]>(address("/api/v1/studies/{name}/datasets", { name })),
    plans: (query: Query) => get<Listed<wire.PlanView>>(address("/api/v1/plans", {}, query)),
    plan: (digest: string) => get<wire.PlanView>(address("/api/v1/plans/{digest}", { digest })),

    validate: (body: wire.Experiment) => post<wire.ValidationView>("/api/v1/experiments/validate", body),
    privacy: (body: wire.Experiment) =>
      post<wire.PrivacyEstimateView>("/api/v1/experiments/privacy", body),
    jobs: (query: Query) => get<Listed<wire.JobView>>(address("/api/v1/jobs", {}, query)),
    startJob: (body: wire.Experiment) => post<wire.JobView>("/api/v1/jobs", body),
    job: (id: string) => get<wire.JobView>(address("/api/v1/jobs/{id}", { id })),
    stopJob: (id: string) => post<wire.JobView>(address("/api/v1/jobs/{id}/stop", { id })),
    pauseJob: (id: string) => post<wire.JobView>(address("/api/v1/jobs/{id}/pause", { id })),
    resumeJob: (id: string, body: wire.ResumeJob) =>
      post<wire.JobView>(address("/api/v1/jobs/{id}/resume", { id }), body),
    changeArguments: (id: string, body: wire.ChangeArguments) =>
      post<wire.JobView>(address("/api/v1/jobs/{id}/arguments", { id }), body),
    rollBack: (id: string, body: wire.RollBack) =>
      post<wire.JobView>(address("/api/v1/jobs/{id}/rollback", { id }), body),
    statistics: (id: string) => get<wire.StatisticsView>(address("/api/v1/jobs/{id}/statistics", { id })),
    evaluations: (id: string) =>
      get<Listed<wire.EvaluationView>>(address("/api/v1/jobs/{id}/evaluations", { id })),
    jobAudit: (id: string, query: Query) =>
      get<Listed<wire.AuditView>>(address("/api/v1/jobs/{id}/audit", { id }, query)),

    models: (query: Query) => get<Listed<wire.ModelView>>(address("/api/v1/models", {}, query)),
    model: (id: string) => get<wire.ModelView>(address("/api/v1/models/{id}", { id })),
    card: (id: string) => get<wire.ModelCard>(address("/api/v1/models/{id}/card", { id })),
    setStage: (id: string, body: wire.SetStage) =>
      post<wire.ModelView>(address("/api/v1/models/{id}/stage", { id }), body),

    audit: (query: Query) => get<Listed<wire.AuditView>>(address("/api/v1/audit", {}, query)),
    verifyAudit: () => get<wire.AuditCheckView>("/api/v1/audit/verify"),
  };
}

export type HubClient = ReturnType<typeof hubClient>;

/** Where a job's events are told as they happen. */
export function streamOf(id: string, after: string): string {
  return address("/api/v1/jobs/{id}/stream", { id }, { after });
}

/** Bring a file of the hub to the person's disk: the request carries who they are, a link would not. */
export async function download(server: Server, path: string, name: string): Promise<void> {
  const response = await server.open(path);
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
