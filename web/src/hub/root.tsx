import { MantineProvider } from "@mantine/core";
import { QueryClientProvider, type QueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useState } from "react";

import type { Server } from "../shared/api/request";
import { ServerContext } from "../shared/api/server";
import { TextProvider } from "../shared/text/language";
import { firstLanguage, localeOf, rememberLanguage } from "../shared/text/languages";
import type { Messages } from "../shared/text/translate";
import { theme } from "../shared/theme";
import type { HubClient } from "./api/client";
import type { Session } from "./api/session";
import { ClientContext, SessionContext } from "./api/use";
import { App } from "./app";
import english from "./text/en.json";

export function Root(props: { server: Server; session: Session; client: HubClient; queries: QueryClient }) {
  const [language, setLanguage] = useState(firstLanguage);
  const [german, setGerman] = useState<Messages | null>(null);

  useEffect(() => {
    document.documentElement.lang = language;
    if (language === "de") void import("./text/de.json").then((file) => setGerman(file.default));
  }, [language]);
  const choose = useCallback((chosen: string) => {
    rememberLanguage(chosen);
    setLanguage(chosen);
  }, []);

  const messages = language === "de" ? german : english;
  if (!messages) return null; // the other language's words are on their way
  return (
    <MantineProvider theme={theme} defaultColorScheme="auto">
      <QueryClientProvider client={props.queries}>
        <ServerContext value={props.server}>
          <SessionContext value={props.session}>
            <ClientContext value={props.client}>
              <TextProvider messages={messages} language={localeOf(language)} choose={choose}>
                <App />
              </TextProvider>
            </ClientContext>
          </SessionContext>
        </ServerContext>
      </QueryClientProvider>
    </MantineProvider>
  );
}
