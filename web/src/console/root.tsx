import { MantineProvider } from "@mantine/core";
import { Notifications } from "@mantine/notifications";
import { QueryClientProvider, type QueryClient } from "@tanstack/react-query";
import { useCallback, useEffect, useState } from "react";

import type { Server } from "../shared/api/request";
import { ServerContext } from "../shared/api/server";
import { TextProvider } from "../shared/text/language";
import { firstLanguage, localeOf, rememberLanguage } from "../shared/text/languages";
import type { Messages } from "../shared/text/translate";
import { theme } from "../shared/theme";
import type { ConsoleClient } from "./api/client";
import { ClientContext } from "./api/use";
import { App } from "./app";
import english from "./text/en.json";

export function Root(props: { server: Server; client: ConsoleClient; queries: QueryClient }) {
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
      <Notifications position="bottom-right" />
      <QueryClientProvider client={props.queries}>
        <ServerContext value={props.server}>
          <ClientContext value={props.client}>
            <TextProvider messages={messages} language={localeOf(language)} choose={choose}>
              <App />
            </TextProvider>
          </ClientContext>
        </ServerContext>
      </QueryClientProvider>
    </MantineProvider>
  );
}
