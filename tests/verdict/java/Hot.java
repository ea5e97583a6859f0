// Builds a large text by adding to it piece by piece, which copies it every time.
public class Hot {
    static String report(int lines) {
        String text = "";
        for (int i = 0; i < lines; i++) text += "line " + i + "\n";
        return text;
    }

    public static void main(String[] args) {
        System.out.println("ready");
        long sum = 0;
        while (true) sum += report(3000).length();
    }
}
