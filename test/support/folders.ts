/** Holds folders as opening an image does. */
import fs from 'node:fs'
import path from 'node:path'
import { closeFolders, type Folder, holdFolders } from '../../src/io/folders.js'

/** Runs `act` with `folders` held. */
export function holding<T>(folders: readonly string[], act: (held: readonly Folder[]) => T): T {
  const held = holdFolders(folders)
  try {
    return act(held)
  } finally {
    closeFolders(held)
  }
}

/** Returns the existing folders of `image`: that of its name, and, if the name is a link, that of the file. */
export function foldersOf(image: string): string[] {
  const real = fs.existsSync(image) ? fs.realpathSync(image) : image
  const folders = [image, real].map(file => path.dirname(file))
  return [...new Set(folders)].filter(folder =>
    fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory(),
  )
}
