/** Every request of the console, typed by the records of wire.console (schema.ts is generated). */
import { address, type Server } from "../../shared/api/request";
import type * as wire from "./schema";

export type Query = Readonly<Record<string, string | number | boolean | null | undefined>>;

/** The console's requests over one connection. Every method throws a Problem. */
export function consoleClient(server: Server) {
  const get = <T>(path: string) => server.request("GET", path) as Promise<T>;
  const post = <T>(path: string, body: unknown = {}) => server.request("POST", path, body) as Promise<T>;
  const put = <T>(path: string, body: unknown) => server.request("PUT", path, body) as Promise<T>;
  const patch = <T>(path: string, body: unknown) => server.request("PATCH", path, body) as Promise<T>;
  const remove = (path: string) => server.request("DELETE", path);

  return {
    session: () => get<wire.SessionView>("/api/session"),
    providers: () => get<wire.ProvidersView>("/api/session/providers"),
    secondCode: (body: wire.SecondCode) => post<wire.SessionView>("/api/session/code", body),
    signIn: (body: wire.SignIn) => post<wire.SessionView>("/api/session", body),
    signOut: () => remove("/api/session"),
    checkInvitation: (body: wire.InvitationToken) => post<wire.InvitationView>("/api/invitation/check", body),
    acceptInvitation: (body: wire.AcceptInvitation) => post<wire.SessionView>("/api/invitation/accept", body),
    changePassword: (body: wire.ChangePassword) => post<wire.SessionView>("/api/account/password", body),
    secondFactor: () => post<wire.SecondFactorView>("/api/account/second-factor"),
    confirmSecondFactor: (body: wire.ConfirmCode) =>
      post<wire.SessionView>("/api/account/second-factor/confirm", body),
    removeSecondFactor: (body: wire.ConfirmCode) =>
      post<wire.SessionView>("/api/account/second-factor/remove", body),

    accounts: () => get<wire.AccountsView>("/api/accounts"),
    invite: (body: wire.Invite) => post<wire.InvitationLink>("/api/accounts/invitations", body),
    withdrawInvitation: (id: string) => remove(address("/api/accounts/invitations/{id}", { id })),
    changeAccount: (name: string, body: wire.ChangeAccount) =>
      patch<wire.AccountView>(address("/api/accounts/{name}", { name }), body),
    removeAccount: (name: string) => remove(address("/api/accounts/{name}", { name })),

    home: () => get<wire.HomeView>("/api/home"),

    datasets: () => get<wire.DatasetsView>("/api/datasets"),
    folder: (path: string) => get<wire.FolderView>(address("/api/folders", {}, { path })),
    inspect: (body: wire.InspectPath) => post<wire.InspectedView>("/api/datasets/inspect", body),
    register: (body: wire.NewDataset) => post<wire.DatasetView>("/api/datasets", body),
    dataset: (name: string) => get<wire.DatasetView>(address("/api/datasets/{name}", { name })),
    changeDataset: (name: string, body: wire.ChangeDataset) =>
      patch<wire.DatasetView>(address("/api/datasets/{name}", { name }), body),
    removeDataset: (name: string) => remove(address("/api/datasets/{name}", { name })),
    refreshDataset: (name: string) =>
      post<wire.DatasetView>(address("/api/datasets/{name}/refresh", { name })),
    hardCases: (name: string, body: wire.FindHardCases) =>
      post<wire.HardCasesView>(address("/api/datasets/{name}/hard-cases", { name }), body),
    previewDataset: (name: string, rows: number) =>
      get<wire.PreviewView>(address("/api/datasets/{name}/preview", { name }, { rows })),

    profile: (name: string) => get<wire.ProfileView>(address("/api/datasets/{name}/profile", { name })),

    databases: () => get<wire.DatabasesView>("/api/databases"),
    mockTwin: (name: string) => get<wire.MockView>(address("/api/datasets/{name}/mock", { name })),

    optOuts: () => get<wire.OptOutView>("/api/opt-outs"),
    addOptOuts: (body: wire.AddOptOuts) => post<wire.OptOutChanged>("/api/opt-outs", body),
    removeOptOut: (body: wire.RemoveOptOut) => post<wire.OptOutChanged>("/api/opt-outs/remove", body),

    harmony: (digest: string, query: Query) =>
      get<wire.HarmonyView>(address("/api/studies/{digest}/harmony", { digest }, query)),
    acceptProposal: (digest: string, body: wire.AcceptProposal) =>
      post<wire.LoadingPlanView>(address("/api/studies/{digest}/harmony/accept", { digest }), body),

    loadingSchema: () => get<unknown>("/api/loading-plans/schema"),
    checkLoading: (body: wire.CheckLoading) => post<wire.LoadingCheckView>("/api/loading-plans/check", body),
    loadingPlans: () => get<wire.LoadingPlansView>("/api/loading-plans"),
    loadingPlan: (name: string) => get<wire.LoadingPlanView>(address("/api/loading-plans/{name}", { name })),
    saveLoadingPlan: (name: string, body: wire.SaveLoadingPlan) =>
      put<wire.LoadingPlanView>(address("/api/loading-plans/{name}", { name }), body),
    previewLoading: (body: wire.PreviewLoading) =>
      post<wire.LoadingPreviewView>("/api/loading-plans/preview", body),
    attachLoading: (name: string, body: wire.AttachLoading) =>
      post<wire.LoadingPlanView>(address("/api/loading-plans/{name}/attach", { name }), body),
    detachLoading: (name: string, body: wire.AttachLoading) =>
      post<wire.LoadingPlanView>(address("/api/loading-plans/{name}/detach", { name }), body),

    studies: () => get<wire.StudiesView>("/api/studies"),
    study: (digest: string) => get<wire.StudyView>(address("/api/studies/{digest}", { digest })),
    acceptStudy: (digest: string, body: wire.AcceptStudy) =>
      post<wire.StudyView>(address("/api/studies/{digest}/accept", { digest }), body),
    declineStudy: (digest: string, body: wire.Decide) =>
      post<wire.StudyView>(address("/api/studies/{digest}/decline", { digest }), body),
    leaveStudy: (digest: string, body: wire.Decide) =>
      post<wire.StudyView>(address("/api/studies/{digest}/leave", { digest }), body),
    pinKeys: (digest: string, body: wire.PinKeys) =>
      post<wire.StudyView>(address("/api/studies/{digest}/pin", { digest }), body),

    pool: (digest: string) => get<wire.PoolView>(address("/api/studies/{digest}/pool", { digest })),
    poolArrivals: (digest: string) =>
      get<wire.ArrivalsView>(address("/api/studies/{digest}/pool/arrivals", { digest })),
    openPool: (digest: string, body: wire.Decide) =>
      post<wire.PoolView>(address("/api/studies/{digest}/pool/open", { digest }), body),
    sendCopy: (digest: string, body: wire.SendCopy) =>
      post<wire.PoolView>(address("/api/studies/{digest}/pool/send", { digest }), body),
    takeCopy: (digest: string, body: wire.TakeCopy) =>
      post<wire.PoolView>(address("/api/studies/{digest}/pool/take", { digest }), body),
    withdrawCopy: (digest: string, body: wire.Decide) =>
      post<wire.PoolView>(address("/api/studies/{digest}/pool/withdraw", { digest }), body),

    plans: () => get<wire.PlansView>("/api/plans"),
    plan: (digest: string) => get<wire.PlanView>(address("/api/plans/{digest}", { digest })),
    planDiff: (digest: string) => get<wire.DiffView>(address("/api/plans/{digest}/diff", { digest })),
    approvePlan: (digest: string, body: wire.ApprovePlan) =>
      post<wire.PlanSummary>(address("/api/plans/{digest}/approve", { digest }), body),
    rejectPlan: (digest: string, body: wire.RejectPlan) =>
      post<wire.PlanSummary>(address("/api/plans/{digest}/reject", { digest }), body),
    revokePlan: (digest: string, body: wire.Decide) =>
      post<wire.PlanSummary>(address("/api/plans/{digest}/revoke", { digest }), body),
    dryRun: (digest: string, body: wire.DryRun) =>
      post<wire.DryRunView>(address("/api/plans/{digest}/dry-run", { digest }), body),

    runs: () => get<wire.RunsView>("/api/runs"),
    stopRun: (job: string, body: wire.Decide) =>
      post<wire.StoppedView>(address("/api/runs/{job}/stop", { job }), body),
    resumeRun: (job: string, body: wire.Decide) => post<null>(address("/api/runs/{job}/resume", { job }), body),
    releases: (query: Query) => get<wire.ReleasesView>(address("/api/releases", {}, query)),

    jobLog: (query: Query) => get<wire.JobLogView>(address("/api/job-log", {}, query)),

    policy: () => get<wire.PolicyView>("/api/policy"),
    policySchema: () => get<unknown>("/api/policy/schema"),
    checkPolicy: (body: wire.PolicyDraft) => post<wire.PolicyCheckView>("/api/policy/check", body),
    savePolicy: (body: wire.PolicyDraft) => put<wire.PolicyView>("/api/policy", body),

    ledger: () => get<wire.LedgerView>("/api/ledger"),
    ledgerEntries: (query: Query) => get<wire.LedgerEntriesView>(address("/api/ledger/entries", {}, query)),
    verifyLedger: () => post<wire.VerifiedView>("/api/ledger/verify"),
    setCap: (body: wire.SetCap) => put<wire.LedgerView>("/api/ledger/caps", body),
    withdrawCap: (body: wire.WithdrawProposal) => post<wire.LedgerView>("/api/ledger/caps/withdraw", body),
    dropCap: (body: wire.DropCap) => post<wire.LedgerView>("/api/ledger/caps/drop", body),

    acceptRestore: (body: wire.Decide) => post<wire.LedgerView>("/api/ledger/restore", body),
    withdrawRestore: () => post<wire.LedgerView>("/api/ledger/restore/withdraw"),

    audit: (query: Query) => get<wire.AuditView>(address("/api/audit", {}, query)),
    verifyAudit: () => post<wire.VerifiedView>("/api/audit/verify"),

    health: () => get<wire.HealthView>("/api/health"),
  };
}

export type ConsoleClient = ReturnType<typeof consoleClient>;
