/** Names of formats in descriptions of commands, as the registry knows them. */

export interface Names {
  /** The texts for which the place holders of description.ts stand. */
  readonly texts: Readonly<Record<string, string>>
  /** The formats that can be read. */
  readonly readable: readonly string[]
  /** The formats that new images can have. */
  readonly creatable: readonly string[]
}

/** Loads the registry. */
export async function formatNames(): Promise<Names> {
  const { CHECKABLE_NAMES, CREATABLE_NAMES, FORMAT_NAMES, RESIZABLE_NAMES, listed } = await import(
    '../../formats/registry.js'
  )
  return {
    texts: {
      formats: listed(FORMAT_NAMES, 'or'),
      readable: FORMAT_NAMES.join(', '),
      resizable: listed(RESIZABLE_NAMES, 'and'),
      creatable: listed(CREATABLE_NAMES, 'or'),
      checkable: CHECKABLE_NAMES.join(', '),
    },
    readable: FORMAT_NAMES,
    creatable: CREATABLE_NAMES,
  }
}

/** Returns `text` with the names of formats filled in. */
export const named = (text: string, { texts }: Names): string =>
  text.replace(/\{([a-z]+)\}/g, (whole, name: string) => texts[name] ?? whole)
