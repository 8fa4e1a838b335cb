import { createContext, useContext, useMemo, type ReactNode } from "react";

import { translate, type Messages, type Values } from "./translate";

export interface Text {
  /** With its region, as "en-GB": how numbers and dates are written. */
  readonly language: string;
  readonly say: (key: string, values?: Values) => string;
  /** Whether the language has words for `key`: names that a newer server sends may lack them. */
  readonly knows: (key: string) => boolean;
  readonly choose: (language: string) => void;
}

const TextContext = createContext<Text | null>(null);

export function TextProvider(props: {
  messages: Messages;
  language: string;
  choose: (language: string) => void;
  children: ReactNode;
}) {
  const { messages, language, choose } = props;
  const text = useMemo<Text>(
    () => ({
      language,
      choose,
      say: (key, values) => translate(messages, language, key, values),
      knows: (key) => key in messages || `${key}.other` in messages,
    }),
    [messages, language, choose],
  );
  return <TextContext value={text}>{props.children}</TextContext>;
}

/** The words of the page's language. */
export function useText(): Text {
  const text = useContext(TextContext);
  if (!text) throw new Error("useText outside a TextProvider");
  return text;
}
